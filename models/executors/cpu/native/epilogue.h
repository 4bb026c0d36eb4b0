// The epilogue of an op: what happens to a sum once it is accumulated. It is the same for every op and independent of
// how the sum was accumulated. Included by kernels.h, in its namespace.

// Address of a matrix's row 0 for this block.
float *row_zero(const Block &block, int matrix) {
    const Slot &slot = block.context->slots[matrix];
    // A scratch slot holds the rows of this block only; its base is moved so that rows keep their numbers.
    return slot.scratch >= 0 ? block.scratch + slot.scratch - (ptrdiff_t)block.first * slot.row_pitch : slot.data;
}

// target = relu(sum + bias + shift + residual), and pre_activation = sum + bias for rows that the halo reads.
struct Epilogue {
    float *target, *pre_activation;     // pre_activation, residual, bias, shift: null for none
    const float *residual, *bias, *shift;
    const uint8_t *read_by_halo;        // (active rows,)
    const uint16_t *yx;                 // (needed rows, 2): position of each row
    ptrdiff_t target_pitch, residual_pitch, pre_activation_pitch; // floats from one row to the next
    ptrdiff_t width;                    // positions of a line
    bool scatter, relu;                 // scatter: the target has a row for every position

    // The addresses of one row.
    struct Row {
        float *target, *pre_activation;
        const float *residual;
    };

    Row row(int i) const {
        ptrdiff_t at = scatter ? yx[2 * i] * width + yx[2 * i + 1] : i;
        return {target + at * target_pitch,
                pre_activation && read_by_halo[i] ? pre_activation + i * pre_activation_pitch : nullptr,
                residual ? residual + i * residual_pitch : nullptr};
    }

    // Call this for a later row before the current one is accumulated: a panel takes a few channels of each residual
    // row, too far apart for the hardware to foresee.
    void prefetch_residual(int i, int column, int channels) const {
        if (residual) prefetch(residual + i * residual_pitch + column, channels);
    }

    // Channels [column, column + LANES) of a row, of which the first `lanes` are stored.
    void write(const Row &row, int column, Vector sum, int lanes) const {
        if (bias) sum += load(bias + column);
        if (row.pre_activation) store(row.pre_activation + column, sum, lanes);
        if (shift) sum += load(shift + column);
        if (row.residual) sum += load(row.residual + column);
        store(row.target + column, relu ? ::relu(sum) : sum, lanes);
    }
};

Epilogue make_epilogue(const Block &block, const Op &op) {
    const Level &level = block.context->geometry->level[block.level];
    const Slot *slots = block.context->slots;
    Epilogue epilogue = {};
    epilogue.target = row_zero(block, op.target) + op.target_column;
    epilogue.target_pitch = slots[op.target].row_pitch;
    if (op.residual >= 0) {
        epilogue.residual = row_zero(block, op.residual);
        epilogue.residual_pitch = slots[op.residual].row_pitch;
    }
    if (op.pre_activation >= 0) {
        epilogue.pre_activation = slots[op.pre_activation].data;
        epilogue.pre_activation_pitch = slots[op.pre_activation].row_pitch;
        epilogue.read_by_halo = level.read_by_halo;
    }
    epilogue.bias = op.bias;
    epilogue.shift = op.shift;
    epilogue.yx = level.yx;
    epilogue.width = level.width;
    epilogue.scatter = op.scatter;
    epilogue.relu = op.relu;
    return epilogue;
}
