// Poses in a picture by an ONNX file of mqat, in ONNX Runtime.
//   decode net.onnx fx fy cx cy picture.ppm...        one JSON line per picture and class, as `mqat predict` writes them
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <onnxruntime_cxx_api.h>

#include "mqat_pose.hpp"

// What is needed of the JSON in the file's metadata: all numbers of a list, and the number behind a key.
static std::vector<double> numbers(const std::string& text) {
    std::vector<double> found;
    for (const char* at = text.c_str(); *at;) {
        char* end = nullptr;
        const double value = std::strtod(at, &end);
        if (end != at) found.push_back(value);
        at = end != at ? end : at + 1;
    }
    return found;
}

static double number_of(const std::string& text, const std::string& key, size_t from = 0) {
    const size_t at = text.find("\"" + key + "\":", from);
    if (at == std::string::npos) throw std::runtime_error("the file's metadata lack " + key);
    return std::strtod(text.c_str() + at + key.size() + 3, nullptr);
}

struct Network {
    Ort::Env env{ORT_LOGGING_LEVEL_ERROR, "mqat"};
    Ort::Session session;
    mqat::Camera internal{};
    int width = 0, height = 0;
    bool antialias = false;
    std::vector<double> mean, deviation;
    std::vector<mqat::Level> levels;  // without the outputs' places
    std::vector<std::array<mqat::Vec3, 8>> boxes;
    mqat::DecodeSettings decode;
    mqat::PnpSettings pnp;

    explicit Network(const char* path) : session(env, path, Ort::SessionOptions{}) {
        const auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
        height = int(shape.at(2)), width = int(shape.at(3));
        const auto k = numbers(entry("internal_camera_K"));
        internal = {k.at(0), k.at(1), k.at(2), k.at(4), k.at(5)};
        mean = numbers(entry("pixel_mean")), deviation = numbers(entry("pixel_std"));
        const std::string anchors = entry("anchors");
        for (size_t at = anchors.find('{'); at != std::string::npos; at = anchors.find('{', at + 1))
            levels.push_back({number_of(anchors, "stride_px", at), number_of(anchors, "anchor_px", at), 0, 0, nullptr, nullptr});
        const auto corners = numbers(entry("box_corners_mm"));
        for (size_t at = 0; at + 24 <= corners.size(); at += 24) {
            std::array<mqat::Vec3, 8> box;
            for (size_t i = 0; i < 24; ++i) box[i / 3][i % 3] = corners[at + i];
            boxes.push_back(box);
        }
        const std::string config = entry("mqat");
        antialias = config.find("\"antialias\":true") != std::string::npos;
        decode = {number_of(config, "CONFIDENCE_TH"), int(number_of(config, "positive_num")), number_of(config, "positive_lambda")};
        // older files say share
        const bool old = config.find("\"min_inlier_share\":") != std::string::npos;
        pnp = {number_of(config, "inlier_px"), number_of(config, old ? "min_inlier_share" : "min_inlier_fraction"),
               config.find("\"widen\":false") == std::string::npos};
    }

    std::string entry(const char* key) {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
        if (!text) throw std::runtime_error(std::string("the file's metadata lack ") + key + ": export it again from a checkpoint");
        return text.get();
    }

    // The outputs of a picture under the internal camera; `levels` point into them.
    std::vector<Ort::Value> run(const mqat::Picture& picture) {
        const size_t area = size_t(width) * height;
        std::vector<float> input(3 * area);
        for (size_t i = 0; i < area; ++i)
            for (size_t k = 0; k < 3; ++k)
                input[k * area + i] = (picture.rgb[3 * i + k] / 255.0f - float(mean[k])) / float(deviation[k]);
        const int64_t shape[] = {1, 3, height, width};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto tensor = Ort::Value::CreateTensor<float>(memory, input.data(), input.size(), shape, 4);
        std::vector<std::string> names;
        for (const char* kind : {"cls_p", "reg_p"})
            for (const auto& level : levels) names.push_back(kind + std::to_string(int(std::log2(level.stride))));
        std::vector<const char*> wanted;
        for (const auto& name : names) wanted.push_back(name.c_str());
        const char* const given[] = {"images"};
        auto outputs = session.Run(Ort::RunOptions{nullptr}, given, &tensor, 1, wanted.data(), wanted.size());
        for (size_t k = 0; k < levels.size(); ++k) {
            const auto dims = outputs[k].GetTensorTypeAndShapeInfo().GetShape();
            levels[k].height = int(dims[2]), levels[k].width = int(dims[3]);
            levels[k].cls = outputs[k].GetTensorData<float>();
            levels[k].reg = outputs[levels.size() + k].GetTensorData<float>();
        }
        return outputs;
    }
};

static void print(const char* picture, size_t c, const std::vector<mqat::Cell>& cells, const std::optional<mqat::Solution>& found,
                  double asked_px) {
    std::printf("{\"image\": \"%s\", \"class\": %zu", picture, c);
    if (!found) {
        std::printf(", \"no_pose\": \"%s\"}\n", cells.empty() ? "no_cell" : "no_consensus");
        return;
    }
    float score = 0;
    for (const auto& cell : cells) score = std::max(score, cell.score);
    const auto& [pose, inliers, residual, inlier_px] = *found;
    score *= float(asked_px / inlier_px);
    std::printf(", \"score\": %.6f, \"R\": [", score);
    for (int i = 0; i < 9; ++i) std::printf("%s%.12g", i ? ", " : "", pose.r[i / 3][i % 3]);
    std::printf("], \"t\": [%.9g, %.9g, %.9g], \"inliers\": %d, \"correspondences\": %zu, \"residual\": %.6f, \"inlier_px\": %g}\n",
                pose.t[0], pose.t[1], pose.t[2], inliers, 8 * cells.size(), residual, inlier_px);
}

int main(int argc, char** argv) try {
    if (argc < 7) {
        std::fprintf(stderr, "usage: %s net.onnx fx fy cx cy picture.ppm...\n", argv[0]);
        return 2;
    }
    Network network(argv[1]);
    const mqat::Camera camera{std::atof(argv[2]), 0, std::atof(argv[4]), std::atof(argv[3]), std::atof(argv[5])};
    for (int i = 6; i < argc; ++i) {
        const auto picture = mqat::to_internal(mqat::read_ppm(argv[i]), camera, network.internal, network.width, network.height,
                                               network.antialias);
        const auto outputs = network.run(picture);
        for (size_t c = 0; c < network.boxes.size(); ++c) {
            const auto cells = mqat::select(network.levels, int(c), network.decode);
            print(argv[i], c, cells, mqat::solve(network.internal, network.boxes[c], cells, network.pnp), network.pnp.inlier_px);
        }
    }
} catch (const std::exception& error) {
    std::fprintf(stderr, "decode: %s\n", error.what());
    return 1;
}
