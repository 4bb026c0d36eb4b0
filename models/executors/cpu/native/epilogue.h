// The epilogue of an op: what happens to a sum once it is accumulated. It is the same for every op and independent of
// how the sum was accumulated. Included by kernels.h, in its namespace.

// Address of a matrix's row 0 for this block.
uint8_t *row_zero(const Block &block, int matrix) {
    const Slot &slot = block.context->slots[matrix];
    // A scratch slot holds the rows of this block only; its base is moved so that rows keep their numbers.
    return slot.scratch >= 0 ? block.scratch + slot.scratch - (ptrdiff_t)block.first * slot.row_bytes : slot.data;
}

// target = relu(sum + bias + shift + residual), and pre_activation = sum + bias for rows that the halo reads.
// ANY: target and residual may be u8. Networks in float32 run instantiations without it.
template <bool ANY> struct Epilogue {
    uint8_t *target, *pre_activation;   // pre_activation, residual, bias, shift: null for none
    const uint8_t *residual;
    const float *bias, *shift;
    const uint8_t *read_by_halo;        // (active rows,)
    const uint16_t *yx;                 // (needed rows, 2): position of each row
    ptrdiff_t target_pitch, residual_pitch, pre_activation_pitch; // bytes from one row to the next
    ptrdiff_t width;                    // positions of a line
    float target_steps, residual_scale; // of u8: steps in a value of 1, value of a step
    bool target_u8, residual_u8;
    bool scatter, relu;                 // scatter: the target has a row for every position

    // The addresses of one row.
    struct Row {
        uint8_t *target, *pre_activation;
        const uint8_t *residual;
    };

    ptrdiff_t position(int i) const { return yx[2 * i] * width + yx[2 * i + 1]; }

    Row row(int i) const {
        ptrdiff_t at = scatter ? position(i) : i;
        return {target + at * target_pitch,
                pre_activation && read_by_halo[i] ? pre_activation + i * pre_activation_pitch : nullptr,
                residual ? residual + i * residual_pitch : nullptr};
    }

    // Call this for a later row before the current one is accumulated: a panel takes a few channels of each residual
    // row, too far apart for the hardware to foresee.
    void prefetch_residual(int i, int column, int channels) const {
        if (!residual) return;
        const int size = ANY && residual_u8 ? 1 : 4;
        prefetch(residual + i * residual_pitch + column * size, channels * size);
    }

    // Channels [column, column + lanes of V) of a row, of which the first `lanes` are stored.
    template <class V> void write(const Row &row, int column, V sum, int lanes) const {
        if (bias) sum += load<V>(bias + column);
        if (row.pre_activation) store((float *)row.pre_activation + column, sum, lanes);
        if (shift) sum += load<V>(shift + column);
        if (row.residual) {
            if (ANY && residual_u8)
                sum += load<V>(row.residual + column) * residual_scale;
            else
                sum += load<V>((const float *)row.residual + column);
        }
        if (ANY && target_u8)
            store(row.target + column, sum * target_steps, lanes);
        else
            store((float *)row.target + column, relu ? ::relu(sum) : sum, lanes);
    }
};

template <bool ANY> Epilogue<ANY> make_epilogue(const Block &block, const Op &op) {
    const Level &level = block.context->geometry->level[block.level];
    const Slot *slots = block.context->slots;
    Epilogue<ANY> epilogue = {};
    epilogue.target = row_zero(block, op.target) + op.target_column * (op.target_scale != 0 ? 1 : 4);
    epilogue.target_pitch = slots[op.target].row_bytes;
    if (op.residual >= 0) {
        epilogue.residual = row_zero(block, op.residual);
        epilogue.residual_pitch = slots[op.residual].row_bytes;
        epilogue.residual_u8 = op.residual_scale != 0;
        epilogue.residual_scale = op.residual_scale;
    }
    if (op.pre_activation >= 0) {
        epilogue.pre_activation = slots[op.pre_activation].data;
        epilogue.pre_activation_pitch = slots[op.pre_activation].row_bytes;
        epilogue.read_by_halo = level.read_by_halo;
    }
    epilogue.bias = op.bias;
    epilogue.shift = op.shift;
    epilogue.yx = level.yx;
    epilogue.width = level.width;
    epilogue.target_u8 = op.target_scale != 0;
    epilogue.target_steps = epilogue.target_u8 ? 1 / op.target_scale : 0;
    epilogue.scatter = op.scatter;
    epilogue.relu = op.relu;
    return epilogue;
}
