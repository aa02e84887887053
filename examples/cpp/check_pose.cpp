// Checks mqat_pose.hpp without ONNX Runtime: known poses, cells with noise and outliers, the warp.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "mqat_pose.hpp"

using namespace mqat;

static void require(bool condition, const char* what) {
    if (!condition) std::fprintf(stderr, "failed: %s\n", what), std::exit(1);
}

int main() {
    const Camera camera{300, 0.5, 256, 303, 250};
    std::array<Vec3, 8> box;
    for (int k = 0; k < 8; ++k) box[k] = {k & 4 ? 52.0 : -52.0, k & 2 ? 54.0 : -55.0, k & 1 ? 58.0 : -57.0};
    std::mt19937 random(7);
    std::uniform_real_distribution<double> anywhere(-1, 1);
    std::normal_distribution<double> noise;
    double worst_turn = 0, worst_shift = 0;
    for (int trial = 0; trial < 300; ++trial) {
        const double z = 350 + 600 * (anywhere(random) + 1);
        const Pose truth = moved({{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}}, {0.3 * z * anywhere(random), 0.3 * z * anywhere(random), z}},
                                 {3 * anywhere(random), 3 * anywhere(random), 3 * anywhere(random), 0, 0, 0});
        std::vector<Cell> cells(10);
        for (size_t i = 0; i < cells.size(); ++i)
            for (int k = 0; k < 8; ++k) {
                const Vec2 p = project(camera, transformed(truth, box[k]));
                const double off = i < 3 ? 200 * anywhere(random) : 0;  // three cells are wrong
                cells[i].corners[k] = {p[0] + 0.3 * noise(random) + off, p[1] + 0.3 * noise(random) - off};
            }
        const auto found = solve(camera, box, cells, {5.0, 0.15, true});
        require(found.has_value(), "a pose is found in spite of outliers");
        require(found->inliers >= 50 && found->residual_px < 1, "the right cells agree");
        double trace = 0;
        for (int i = 0; i < 3; ++i) trace += dot(found->pose.r[i], truth.r[i]);
        worst_turn = std::max(worst_turn, std::acos(std::clamp((trace - 1) / 2, -1.0, 1.0)) * 57.29578);
        const Vec3 shift{found->pose.t[0] - truth.t[0], found->pose.t[1] - truth.t[1], found->pose.t[2] - truth.t[2]};
        worst_shift = std::max(worst_shift, norm(shift) / z);
    }
    std::printf("300 poses: worst rotation %.2f deg, worst translation %.4f of the distance\n", worst_turn, worst_shift);
    require(worst_turn < 3 && worst_shift < 0.02, "poses are those that were made");
    require(!solve(camera, box, {}, {}), "no pose without a cell");

    // Cells that disagree by more than the inlier distance have a pose within a multiple of it.
    std::vector<Cell> coarse(10);
    const Pose near{{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}}, {10, 20, 300}};
    for (Cell& cell : coarse)
        for (int k = 0; k < 8; ++k) {
            const Vec2 p = project(camera, transformed(near, box[k]));
            cell.corners[k] = {p[0] + 2 * noise(random), p[1] + 2 * noise(random)};
        }
    require(!solve(camera, box, coarse, {0.5, 0.15, false}), "few agree within half a pixel");
    const auto wide = solve(camera, box, coarse, {0.5, 0.15, true});
    require(wide && (wide->inlier_px == 1 || wide->inlier_px == 2), "more agree within one or two");

    Picture picture{64, 48, std::vector<uint8_t>(64 * 48 * 3)};
    for (size_t i = 0; i < picture.rgb.size(); ++i) picture.rgb[i] = uint8_t(random());
    const Camera whole{100, 0, 31.5, 100, 23.5};
    require(to_internal(picture, whole, whole, 64, 48, true).rgb == picture.rgb, "a camera's own picture stays");
    const Camera shifted{100, 0, 32.5, 100, 23.5};
    const Picture right = to_internal(picture, whole, shifted, 64, 48, false);
    require(right.rgb[0] == 128 && right.rgb[3] == picture.rgb[0], "outside is grey, inside moves by a pixel");
    std::puts("all right");
}
