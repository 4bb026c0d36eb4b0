// Random convolutions in eight bits by the kernels named KERNELS_UNDER_TEST, against plain integers. Prints how many
// were right. For instruction sets that this machine only emulates; see test_int8_emulated.py.
#include "structures.h"
#include <stdio.h>
#include <random>
#include <vector>

extern const Kernels KERNELS_UNDER_TEST;
static std::mt19937 generator(0);

static int number(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// A 3x3 convolution of stride 1 at level 2, every position active. Returns whether every sum is right.
static bool right() {
    const Kernels &kernels = KERNELS_UNDER_TEST;
    const int height = number(1, 9), width = number(1, 9), in = number(1, 40), out = number(1, 70);
    const int rows = height * width, padded = (out + 7) / 8 * 8, row_bytes = (in + 15) / 16 * 16;
    Geometry geometry = {};
    Level &level = geometry.level[2];
    level.height = height, level.width = width, level.map_pitch = width + MARGIN;
    level.active_rows = level.needed_rows = rows;
    std::vector<int32_t> map((height + MARGIN) * level.map_pitch, -1);
    std::vector<uint16_t> yx;
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
            map[(y + 1) * level.map_pitch + x + 1] = y * width + x;
            yx.insert(yx.end(), {(uint16_t)y, (uint16_t)x});
        }
    level.map = map.data(), level.yx = yx.data();

    std::vector<uint8_t> source((1 + rows) * row_bytes + 64), target((1 + rows) * padded * 4 + 256);
    for (size_t i = row_bytes; i < source.size(); ++i) source[i] = (uint8_t)(number(0, 3) ? number(0, 255) : 255);
    std::vector<int> weights(9 * in * out);
    for (int &w : weights) w = number(0, 3) ? number(-127, 127) : 127;

    // [panel][tap][group][part][output channel of the panel][4 / parts], as Isa.pack_u8 does.
    const int parts = kernels.dot_parts, lanes = kernels.lanes, groups = (in + 3) / 4;
    const int vectors = (padded + lanes - 1) / lanes, panels = (vectors + kernels.panel_vectors - 1) / kernels.panel_vectors;
    std::vector<uint8_t> packed;
    for (int panel = 0; panel < panels; ++panel)
        for (int tap = 0; tap < 9; ++tap)
            for (int group = 0; group < groups; ++group)
                for (int part = 0; part < parts; ++part)
                    for (int o = vectors * panel / panels * lanes; o < vectors * (panel + 1) / panels * lanes && o < padded; ++o)
                        for (int place = 0; place < 4 / parts; ++place) {
                            const int c = 4 * group + parts * place + part;
                            const int w = c < in && o < out ? weights[(tap * in + c) * out + o] : 0;
                            for (int byte = 0; byte < parts; ++byte) packed.push_back((uint8_t)(w >> (8 * byte)));
                        }
    packed.resize(packed.size() + 64);
    std::vector<float> scales(padded + 16, 1.0f), shift(padded + 16);
    std::vector<int32_t> first(padded + 16);
    for (size_t i = 0; i < weights.size(); ++i) first[i % out] += 128 * weights[i];

    Slot slots[] = {{source.data() + row_bytes, row_bytes, -1}, {target.data() + padded * 4, padded * 4, -1}};
    Op op = {};
    op.kind = CONVOLVE_U8, op.source = 0, op.target = 1, op.residual = op.pre_activation = -1;
    op.source_level = 2, op.addressing = THROUGH_MAP, op.stride = 1, op.taps = 9, op.parts = 1;
    op.in_channels = in, op.out_channels = out, op.source_scale = 1;
    op.weights = packed.data(), op.scales = scales.data(), op.shift = shift.data(), op.first_sums = first.data();
    Context context = {};
    context.geometry = context.previous = &geometry, context.slots = slots;
    kernels.run({&op, 1, 2, ACTIVE, 0, rows, 0, 1, nullptr, &context});

    for (int row = 0; row < rows; ++row)
        for (int o = 0; o < out; ++o) {
            int sum = 0;
            for (int tap = 0; tap < 9; ++tap) {
                const int y = row / width + tap / 3 - 1, x = row % width + tap % 3 - 1;
                if (y < 0 || y >= height || x < 0 || x >= width) continue;
                for (int c = 0; c < in; ++c)
                    sum += source[(1 + y * width + x) * row_bytes + c] * weights[(tap * in + c) * out + o];
            }
            if (((const float *)(target.data() + padded * 4))[row * padded + o] != (float)sum) return false;
        }
    return true;
}

int main() {
    int count = 0;
    for (int i = 0; i < 50; ++i) count += right();
    printf("%s: %d of 50 are right\n", KERNELS_UNDER_TEST.name, count);
}
