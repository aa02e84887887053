// Poses from a picture and the outputs of an mqat network: the warp to the internal camera, the choice of cells, PnP.
// Header-only, C++17, standard library alone. docs/format.md explains each step; numbers are px and mm.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace mqat {

using Vec3 = std::array<double, 3>;
using Vec2 = std::array<double, 2>;
using Mat3 = std::array<Vec3, 3>;  // rows

struct Camera {
    double fx, skew, cx, fy, cy;
};

struct Pose {
    Mat3 r{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
    Vec3 t{0, 0, 1};
};

struct Picture {
    int width = 0, height = 0;
    std::vector<uint8_t> rgb;  // rows of R G B
};

// ---- vectors --------------------------------------------------------------------------------------------------------

inline double dot(const Vec3& a, const Vec3& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
inline double norm(const Vec3& a) { return std::sqrt(dot(a, a)); }
inline Vec3 cross(const Vec3& a, const Vec3& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}
inline Vec3 scaled(const Vec3& a, double s) { return {a[0] * s, a[1] * s, a[2] * s}; }
inline Vec3 transformed(const Pose& p, const Vec3& x) {
    return {dot(p.r[0], x) + p.t[0], dot(p.r[1], x) + p.t[1], dot(p.r[2], x) + p.t[2]};
}
inline Vec2 project(const Camera& c, const Vec3& x) {
    return {(c.fx * x[0] + c.skew * x[1]) / x[2] + c.cx, c.fy * x[1] / x[2] + c.cy};
}

// ---- pictures -------------------------------------------------------------------------------------------------------

inline Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int most = 0;
    Picture p;
    const auto number = [&](int& value) {
        while (file >> std::ws && file.peek() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
        file >> value;
    };
    file >> magic;
    number(p.width), number(p.height), number(most);
    if (!file || magic != "P6" || most != 255 || p.width < 1 || p.height < 1)
        throw std::runtime_error(path + " is not a binary PPM (P6) of 8 bits: make one with `convert a.png a.ppm`");
    file.get();
    p.rgb.resize(size_t(p.width) * p.height * 3);
    file.read(reinterpret_cast<char*>(p.rgb.data()), std::streamsize(p.rgb.size()));
    if (size_t(file.gcount()) != p.rgb.size()) throw std::runtime_error(path + " is truncated");
    return p;
}

// The picture of camera `from` as the network's camera would have taken it: bilinear, grey 128 outside. With `antialias`
// (data.antialias) each pixel is the mean of samples spread over it, where the picture shrinks.
inline Picture to_internal(const Picture& source, const Camera& from, const Camera& internal, int width, int height,
                           bool antialias) {
    // K_from K_internal^-1, which takes pixels of the result to those of the source
    const double a = from.fx / internal.fx, e = from.fy / internal.fy;
    const double b = (from.skew - a * internal.skew) / internal.fy;
    const double c = from.cx - a * internal.cx - b * internal.cy, f = from.cy - e * internal.cy;
    const auto samples = [&](double length) {
        return antialias ? int(std::clamp(std::ceil(length - 1e-6), 1.0, 16.0)) : 1;
    };
    const int nx = samples(std::abs(a)), ny = samples(std::hypot(b, e));
    const auto tap = [&](int x, int y, int channel) -> float {
        const bool inside = x >= 0 && y >= 0 && x < source.width && y < source.height;
        return inside ? source.rgb[(size_t(y) * source.width + x) * 3 + channel] : 128.0f;
    };
    Picture out{width, height, std::vector<uint8_t>(size_t(width) * height * 3)};
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x) {
            float sum[3] = {0, 0, 0};
            for (int j = 0; j < ny; ++j)
                for (int i = 0; i < nx; ++i) {
                    const double dx = x + (i + 0.5) / nx - 0.5, dy = y + (j + 0.5) / ny - 0.5;
                    const double u = std::clamp(a * dx + b * dy + c, -2.0, source.width + 1.0);
                    const double v = std::clamp(e * dy + f, -2.0, source.height + 1.0);
                    const int u0 = int(std::floor(u)), v0 = int(std::floor(v));
                    const float fu = float(u - u0), fv = float(v - v0);
                    for (int k = 0; k < 3; ++k) {
                        const float top = tap(u0, v0, k) + (tap(u0 + 1, v0, k) - tap(u0, v0, k)) * fu;
                        const float low = tap(u0, v0 + 1, k) + (tap(u0 + 1, v0 + 1, k) - tap(u0, v0 + 1, k)) * fu;
                        sum[k] += top + (low - top) * fv;
                    }
                }
            for (int k = 0; k < 3; ++k)
                out.rgb[(size_t(y) * width + x) * 3 + k] = uint8_t(sum[k] / float(nx * ny) + 0.5f);
        }
    return out;
}

// ---- cells ----------------------------------------------------------------------------------------------------------

// One pyramid level's outputs for one picture.
struct Level {
    double stride, anchor;
    int height, width;
    const float* cls;  // [classes, height, width]
    const float* reg;  // [16 classes, height, width]
};

struct DecodeSettings {
    double threshold = 0.3;        // data.CONFIDENCE_TH
    int positive_num = 10;         // training.targets
    double positive_lambda = 1.0;
};

// A cell above the threshold, with the 8 corners that it predicts.
struct Cell {
    float score;
    int index;
    std::array<Vec2, 8> corners;
};

inline std::vector<Cell> candidates(const Level& level, int c, double threshold) {
    const int num = level.height * level.width;
    std::vector<Cell> cells;
    for (int i = 0; i < num; ++i) {
        const float sigmoid = 1.0f / (1.0f + std::exp(-level.cls[size_t(c) * num + i]));
        if (!(sigmoid > float(threshold))) continue;
        Cell cell{std::sqrt(sigmoid), i, {}};
        const double x = level.stride * (i % level.width + 0.5), y = level.stride * (i / level.width + 0.5);
        bool finite = true;
        for (int k = 0; k < 8; ++k) {
            const auto offset = [&](int channel) { return double(level.reg[size_t(16 * c + channel) * num + i]); };
            cell.corners[k] = {x + offset(k) * level.anchor, y + offset(8 + k) * level.anchor};
            finite = finite && std::isfinite(cell.corners[k][0]) && std::isfinite(cell.corners[k][1]);
        }
        if (finite) cells.push_back(cell);
    }
    std::stable_sort(cells.begin(), cells.end(), [](const Cell& a, const Cell& b) { return a.score > b.score; });
    return cells;
}

// The larger side of the box around the corners.
inline double extent(const Cell& cell) {
    double span = 0;
    for (int axis = 0; axis < 2; ++axis) {
        const auto less = [axis](const Vec2& a, const Vec2& b) { return a[axis] < b[axis]; };
        const auto [low, high] = std::minmax_element(cell.corners.begin(), cell.corners.end(), less);
        span = std::max(span, (*high)[axis] - (*low)[axis]);
    }
    return span;
}

// The best cells of class c: of each level as many as an object of that extent gets in training. Empty: no detection.
inline std::vector<Cell> select(const std::vector<Level>& levels, int c, const DecodeSettings& settings) {
    std::vector<std::vector<Cell>> all;
    float best = 0;
    double span = 0;
    for (const Level& level : levels) {
        all.push_back(candidates(level, c, settings.threshold));
        if (!all.back().empty() && all.back()[0].score > best) {
            best = all.back()[0].score;
            span = std::max(span, extent(all.back()[0]));
        }
    }
    std::vector<Cell> chosen;
    if (!(span > 0)) return chosen;
    std::vector<double> weights;
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (const Level& level : levels) {
        weights.push_back(-settings.positive_lambda * std::pow(std::log2(span / level.anchor), 2));
        largest = std::max(largest, weights.back());
    }
    for (double& weight : weights) sum += weight = std::exp(weight - largest);
    for (size_t k = 0; k < levels.size(); ++k) {
        const size_t wanted = size_t(std::floor(settings.positive_num * weights[k] / sum + 0.5));
        chosen.insert(chosen.end(), all[k].begin(), all[k].begin() + std::min(wanted, all[k].size()));
    }
    return chosen;
}

// ---- PnP ------------------------------------------------------------------------------------------------------------

struct PnpSettings {
    double inlier_px = 5.0;  // evaluation.ransac
    double min_inlier_fraction = 0.15;
    bool widen = true;
};

struct Solution {
    Pose pose;
    int inliers;
    double residual_px;  // mean distance of the inliers
    double inlier_px;  // within which they agree
};

// Points of the object with the pixels where they are seen, and what each counts (all the same where empty).
struct Sightings {
    std::vector<Vec3> points;
    std::vector<Vec2> pixels;
    std::vector<double> weights;

    double weight(int i) const { return weights.empty() ? 1.0 : weights[i]; }
};

inline bool solve6(std::array<std::array<double, 6>, 6> a, std::array<double, 6> b, std::array<double, 6>& x) {
    for (int i = 0; i < 6; ++i) {  // Cholesky
        for (int j = 0; j <= i; ++j) {
            double sum = a[i][j];
            for (int k = 0; k < j; ++k) sum -= a[i][k] * a[j][k];
            if (i == j && sum <= 0) return false;
            a[i][j] = i == j ? std::sqrt(sum) : sum / a[j][j];
        }
    }
    for (int i = 0; i < 6; ++i) {
        for (int k = 0; k < i; ++k) b[i] -= a[i][k] * b[k];
        b[i] /= a[i][i];
    }
    for (int i = 5; i >= 0; --i) {
        for (int k = i + 1; k < 6; ++k) b[i] -= a[k][i] * b[k];
        b[i] /= a[i][i];
    }
    x = b;
    return true;
}

// The pose turned by the rotation vector x[0..3] and shifted by x[3..6], in the camera's axes.
inline Pose moved(const Pose& pose, const std::array<double, 6>& x) {
    const Vec3 w{x[0], x[1], x[2]};
    const double angle = norm(w), s = angle < 1e-9 ? 1 : std::sin(angle) / angle;
    const double q = angle < 1e-9 ? 0.5 : (1 - std::cos(angle)) / (angle * angle);
    const auto turn = [&](const Vec3& v) {
        const Vec3 once = cross(w, v), twice = cross(w, once);
        return Vec3{v[0] + s * once[0] + q * twice[0], v[1] + s * once[1] + q * twice[1], v[2] + s * once[2] + q * twice[2]};
    };
    Pose out;
    for (int column = 0; column < 3; ++column) {
        const Vec3 v = turn({pose.r[0][column], pose.r[1][column], pose.r[2][column]});
        for (int row = 0; row < 3; ++row) out.r[row][column] = v[row];
    }
    for (int i = 0; i < 3; ++i) out.t[i] = pose.t[i] + x[3 + i];
    return out;
}

// Sum of squared distances of those used; infinite with a point behind the camera.
inline double squared_cost(const Camera& camera, const Sightings& seen, const std::vector<int>& used, const Pose& pose) {
    double sum = 0;
    for (int i : used) {
        const Vec3 x = transformed(pose, seen.points[i]);
        if (!(x[2] > 0)) return std::numeric_limits<double>::infinity();
        const Vec2 p = project(camera, x);
        sum += seen.weight(i) * (std::pow(p[0] - seen.pixels[i][0], 2) + std::pow(p[1] - seen.pixels[i][1], 2));
    }
    return sum;
}

// Levenberg-Marquardt on the squared distances of those used.
inline Pose refined(const Camera& camera, const Sightings& seen, const std::vector<int>& used, Pose pose, int iterations) {
    double cost = squared_cost(camera, seen, used, pose), damping = 1e-3;
    for (int iteration = 0; iteration < iterations && std::isfinite(cost); ++iteration) {
        std::array<std::array<double, 6>, 6> jtj{};
        std::array<double, 6> jtr{};
        for (int i : used) {
            const Vec3 x = transformed(pose, seen.points[i]);
            const Vec3 y{x[0] - pose.t[0], x[1] - pose.t[1], x[2] - pose.t[2]};  // turns with the rotation
            const Vec2 p = project(camera, x);
            const double z = x[2];
            const Vec3 gradient[2] = {
                {camera.fx / z, camera.skew / z, -(camera.fx * x[0] + camera.skew * x[1]) / (z * z)},
                {0, camera.fy / z, -camera.fy * x[1] / (z * z)}};
            for (int axis = 0; axis < 2; ++axis) {
                const Vec3 turn = cross(y, gradient[axis]);
                const double row[6] = {turn[0], turn[1], turn[2], gradient[axis][0], gradient[axis][1], gradient[axis][2]};
                const double residual = p[axis] - seen.pixels[i][axis];
                for (int a = 0; a < 6; ++a) {
                    jtr[a] -= seen.weight(i) * row[a] * residual;
                    for (int b = 0; b < 6; ++b) jtj[a][b] += seen.weight(i) * row[a] * row[b];
                }
            }
        }
        bool better = false;
        for (int attempt = 0; attempt < 12 && !better; ++attempt) {
            auto damped = jtj;
            for (int a = 0; a < 6; ++a) damped[a][a] += damping * std::max(jtj[a][a], 1e-12);
            std::array<double, 6> step;
            if (solve6(damped, jtr, step)) {
                const Pose next = moved(pose, step);
                const double next_cost = squared_cost(camera, seen, used, next);
                if (next_cost <= cost) {
                    better = cost - next_cost > 1e-12 * cost;
                    pose = next, cost = next_cost;
                    damping = std::max(damping / 3, 1e-15);
                    if (!better) return pose;
                }
            }
            if (!better) damping *= 4;
        }
        if (!better) break;
    }
    return pose;
}

// A start without a guess, for points that fill space: scaled orthographic projection, corrected for depth until it stays
// (DeMenthon, Davis, Model-Based Object Pose in 25 Lines of Code, IJCV 1995).
inline std::optional<Pose> posit(const Camera& camera, const std::vector<Vec3>& points, const std::vector<Vec2>& pixels) {
    const size_t n = points.size();
    Vec3 center{};
    for (const Vec3& x : points)
        for (int i = 0; i < 3; ++i) center[i] += x[i] / double(n);
    std::vector<Vec3> about(n);
    Mat3 m{};
    for (size_t k = 0; k < n; ++k)
        for (int i = 0; i < 3; ++i) about[k][i] = points[k][i] - center[i];
    for (const Vec3& x : about)
        for (int i = 0; i < 3; ++i)
            for (int j = 0; j < 3; ++j) m[i][j] += x[i] * x[j];
    const double det = dot(m[0], cross(m[1], m[2]));
    if (!(std::abs(det) > 1e-12 * std::pow(m[0][0] + m[1][1] + m[2][2], 3))) return std::nullopt;  // flat
    const Mat3 inverse{scaled(cross(m[1], m[2]), 1 / det), scaled(cross(m[2], m[0]), 1 / det), scaled(cross(m[0], m[1]), 1 / det)};
    std::vector<double> w(n, 1.0);
    Pose pose;
    for (int iteration = 0; iteration < 30; ++iteration) {
        Vec3 sums[2]{};
        double means[2]{};
        for (size_t k = 0; k < n; ++k) {
            const double v = (pixels[k][1] - camera.cy) / camera.fy;
            const double u = (pixels[k][0] - camera.cx - camera.skew * v) / camera.fx;
            const double seen[2] = {u * w[k], v * w[k]};
            for (int axis = 0; axis < 2; ++axis) {
                means[axis] += seen[axis] / double(n);
                for (int i = 0; i < 3; ++i) sums[axis][i] += about[k][i] * seen[axis];
            }
        }
        Vec3 rows[2];
        for (int axis = 0; axis < 2; ++axis)
            rows[axis] = {dot(inverse[0], sums[axis]), dot(inverse[1], sums[axis]), dot(inverse[2], sums[axis])};
        const double lengths[2] = {norm(rows[0]), norm(rows[1])};
        if (!(lengths[0] > 0 && lengths[1] > 0)) return std::nullopt;
        const double z = 1 / std::sqrt(lengths[0] * lengths[1]);
        const Vec3 x_axis = scaled(rows[0], 1 / lengths[0]);
        Vec3 z_axis = cross(x_axis, scaled(rows[1], 1 / lengths[1]));
        if (!(norm(z_axis) > 1e-6)) return std::nullopt;
        z_axis = scaled(z_axis, 1 / norm(z_axis));
        pose.r = {x_axis, cross(z_axis, x_axis), z_axis};
        pose.t = {means[0] * z, means[1] * z, z};
        for (size_t k = 0; k < n; ++k) w[k] = 1 + dot(z_axis, about[k]) / z;
    }
    for (int i = 0; i < 3; ++i) pose.t[i] -= dot(pose.r[i], center);
    return pose;
}

inline std::vector<int> inliers_of(const Camera& camera, const Sightings& seen, const Pose& pose, double limit) {
    std::vector<int> inliers;
    for (size_t i = 0; i < seen.points.size(); ++i)
        if (squared_cost(camera, seen, {int(i)}, pose) < limit * limit) inliers.push_back(int(i));
    return inliers;
}

// What each sighting counts by its distance: by the likeliest of a Gaussian and four Student distributions, fading to 0 at ten
// standard deviations. Empty when too few are near.
inline std::vector<double> robust_weights(const std::vector<double>& residuals, double limit) {
    std::vector<double> near;
    for (double r : residuals)
        if (r < 2 * limit) near.push_back(r);
    if (near.size() < 6) return {};
    std::nth_element(near.begin(), near.begin() + near.size() / 2, near.end());
    const double freedom = 2.0 * double(near.size());
    const double sigma = near[near.size() / 2] / 1.1774 * std::sqrt(freedom / (freedom - 6));
    const double cut = 10 * std::clamp(sigma, 0.02 * limit, 0.5 * limit);
    std::vector<double> squares;
    for (double r : near)
        if (r < cut) squares.push_back(r * r);
    const double n = double(squares.size()), unfitted = std::max(n - 3, 1.0);
    double scale = 0;
    for (double square : squares) scale += square / (2 * unfitted);
    scale = std::max(scale, 1e-300);
    double best = 1 - n * std::log(scale) - unfitted;
    std::vector<double> weights(residuals.size(), 1.0);
    for (double tail : {8.0, 4.0, 2.0, 1.0}) {
        for (int step = 0; step < 3; ++step) {
            double sum = 0, total = 0;
            for (double square : squares) {
                const double weight = 1 / (tail + square / scale);
                sum += weight * square, total += weight;
            }
            scale = std::max(sum / (2 * total) * n / unfitted, 1e-300);
        }
        double likelihood = -n * std::log(scale);
        for (double square : squares) likelihood -= (tail + 2) / 2 * std::log1p(square / (tail * scale));
        if (likelihood > best) {
            best = likelihood;
            for (size_t i = 0; i < residuals.size(); ++i)
                weights[i] = (tail + 2) / (tail + residuals[i] * residuals[i] / scale);
        }
    }
    for (size_t i = 0; i < residuals.size(); ++i)
        weights[i] *= std::pow(std::max(1 - std::pow(residuals[i] / cut, 2), 0.0), 2);
    return weights;
}

// The last fit: all sightings by their weights.
inline Pose reweighted(const Camera& camera, Sightings seen, Pose pose, double limit) {
    std::vector<int> all(seen.points.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = int(i);
    for (int round = 0; round < 6; ++round) {
        std::vector<double> residuals;
        seen.weights.clear();
        for (int i : all) residuals.push_back(std::sqrt(squared_cost(camera, seen, {i}, pose)));
        seen.weights = robust_weights(residuals, limit);
        if (seen.weights.empty()) break;
        pose = refined(camera, seen, all, pose, 4);
    }
    return pose;
}

// The pose of an object whose 8 box corners each cell predicts. Hypotheses are the poses of single cells and of the median
// corners: as many as there are cells, so none is drawn at random. The best by truncated squared distances is refined.
inline std::optional<Solution> solve_within(const Camera& camera, const std::array<Vec3, 8>& box, const std::vector<Cell>& cells,
                                            const PnpSettings& settings) {
    if (cells.empty()) return std::nullopt;
    Sightings seen;
    std::array<std::array<std::vector<double>, 2>, 8> by_corner;
    for (const Cell& cell : cells)
        for (int k = 0; k < 8; ++k) {
            seen.points.push_back(box[k]);
            seen.pixels.push_back(cell.corners[k]);
            for (int axis = 0; axis < 2; ++axis) by_corner[k][axis].push_back(cell.corners[k][axis]);
        }
    std::vector<std::vector<Vec2>> views;
    std::vector<Vec2> medians(8);
    for (int k = 0; k < 8; ++k)
        for (int axis = 0; axis < 2; ++axis) {
            auto& values = by_corner[k][axis];
            std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
            medians[k][axis] = values[values.size() / 2];
        }
    views.push_back(medians);
    for (const Cell& cell : cells) views.emplace_back(cell.corners.begin(), cell.corners.end());

    const std::vector<Vec3> corners(box.begin(), box.end());
    const std::vector<int> eight{0, 1, 2, 3, 4, 5, 6, 7};
    const double limit = settings.inlier_px;
    std::optional<Pose> best;
    double least = std::numeric_limits<double>::infinity();
    for (const auto& view : views) {
        const auto start = posit(camera, corners, view);
        if (!start) continue;
        const Pose pose = refined(camera, {corners, view, {}}, eight, *start, 10);
        double cost = 0;
        for (size_t i = 0; i < seen.points.size(); ++i)
            cost += std::min(squared_cost(camera, seen, {int(i)}, pose), limit * limit);
        if (cost < least) best = pose, least = cost;
    }
    if (!best) return std::nullopt;
    std::vector<int> used = inliers_of(camera, seen, *best, limit);
    for (int round = 0; round < 5 && used.size() >= 4; ++round) {
        *best = refined(camera, seen, used, *best, 20);
        const std::vector<int> now = inliers_of(camera, seen, *best, limit);
        if (now == used) break;
        used = now;
    }
    *best = reweighted(camera, seen, *best, limit);
    used = inliers_of(camera, seen, *best, limit);
    const double wanted = std::max(4.0, settings.min_inlier_fraction * double(seen.points.size()));
    if (double(used.size()) < wanted) return std::nullopt;
    double sum = 0;
    for (int i : used) sum += std::sqrt(squared_cost(camera, seen, {i}, *best));
    return Solution{*best, int(used.size()), sum / double(used.size()), limit};
}

// The same; where nothing is found, within twice and four times the inlier distance.
inline std::optional<Solution> solve(const Camera& camera, const std::array<Vec3, 8>& box, const std::vector<Cell>& cells,
                                     const PnpSettings& settings) {
    for (const double factor : {1.0, 2.0, 4.0}) {
        PnpSettings wider = settings;
        wider.inlier_px *= factor;
        const auto found = solve_within(camera, box, cells, wider);
        if (found || !settings.widen) return found;
    }
    return std::nullopt;
}

}  // namespace mqat
