#!/usr/bin/env python3
"""Poses in pictures by an ONNX file of mqat, with numpy, ONNX Runtime and OpenCV. docs/format.md explains each step.

    python3 decode.py net.onnx camera.json picture.png...
    python3 decode.py net.onnx camera.json picture.png... --compare predictions.jsonl    (those of `mqat predict`)

camera.json holds fx, fy, cx, cy (px), or cam_K with 9 numbers; "distortion" with OpenCV's coefficients where there are any.
Files without the objects' boxes need --boxes FILE (BBOX_FILE of the dataset). One JSON line per picture and class.
"""

import argparse
import json
import sys

import cv2
import numpy as np
import onnxruntime

BORDER = 128.0  # grey of what lies outside the picture


class Network:
    """An ONNX file and what it says of itself."""

    def __init__(self, path, boxes=None):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        meta = self.session.get_modelmeta().custom_metadata_map
        self.k = np.array(json.loads(meta["internal_camera_K"])).reshape(3, 3)
        self.mean = np.array(json.loads(meta["pixel_mean"]), np.float32)
        self.std = np.array(json.loads(meta["pixel_std"]), np.float32)
        self.anchors = json.loads(meta["anchors"])
        self.height, self.width = self.session.get_inputs()[0].shape[2:]
        config = json.loads(meta["mqat"])["config"]
        self.threshold = config["data"]["CONFIDENCE_TH"]
        self.antialias = config["data"].get("antialias", False)
        self.targets = config["training"]["targets"]
        self.ransac = config["evaluation"]["ransac"]
        # older files say share
        self.min_inliers = self.ransac.get("min_inlier_fraction", self.ransac.get("min_inlier_share"))
        if boxes is None and "box_corners_mm" not in meta:
            sys.exit(f"{path} does not carry the boxes of its objects: name them with --boxes")
        corners = json.load(open(boxes)) if boxes else json.loads(meta["box_corners_mm"])
        self.corners = np.array(corners, np.float64)  # [classes, 8, 3], mm

    def outputs(self, pixels):
        """Logits and offsets of each level, finest first, of a picture [h, w, 3] under the internal camera."""
        x = ((pixels.astype(np.float32) / 255 - self.mean) / self.std).transpose(2, 0, 1)[None]
        names = [f"{kind}_p{int(np.log2(level['stride_px']))}" for kind in ("cls", "reg") for level in self.anchors]
        found = self.session.run(names, {"images": np.ascontiguousarray(x)})
        return list(zip(found[: len(self.anchors)], found[len(self.anchors) :]))


def bilinear(picture, u, v):
    """Samples a picture [h, w, 3] at columns u and rows v; outside is BORDER."""
    padded = np.pad(picture.astype(np.float32), ((1, 2), (1, 2), (0, 0)), constant_values=BORDER)
    u = np.clip(u + 1, 0, padded.shape[1] - 2)
    v = np.clip(v + 1, 0, padded.shape[0] - 2)
    x, y = np.floor(u).astype(int), np.floor(v).astype(int)
    fu, fv = (u - x).astype(np.float32)[..., None], (v - y).astype(np.float32)[..., None]
    top = padded[y, x] + (padded[y, x + 1] - padded[y, x]) * fu
    bottom = padded[y + 1, x] + (padded[y + 1, x + 1] - padded[y + 1, x]) * fu
    return top + (bottom - top) * fv


def to_internal(picture, k, distortion, network):
    """The picture as the internal camera would have taken it: [h, w, 3], bytes."""
    back = k @ np.linalg.inv(network.k)  # from the network's pixels to the picture's
    samples = [1, 1]
    if network.antialias:
        samples = [int(np.clip(np.ceil(np.hypot(back[0, i], back[1, i]) - 1e-6), 1, 16)) for i in (0, 1)]
    columns, rows = np.meshgrid(np.arange(network.width, dtype=float), np.arange(network.height, dtype=float))
    total = np.zeros((network.height, network.width, 3), np.float32)
    for j in range(samples[1]):
        for i in range(samples[0]):
            x = columns + (i + 0.5) / samples[0] - 0.5
            y = rows + (j + 0.5) / samples[1] - 0.5
            place = np.stack([x, y, np.ones_like(x)], -1) @ back.T
            if distortion is not None:
                rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(network.k).T
                flat = cv2.projectPoints(rays.reshape(-1, 3), np.zeros(3), np.zeros(3), k, distortion)[0]
                place = flat.reshape(*x.shape, 2)
            total += bilinear(picture, place[..., 0], place[..., 1])
    return (total / (samples[0] * samples[1]) + 0.5).astype(np.uint8)


def cells_per_level(span_px, network):
    """How many cells each level gives for an object of that extent."""
    sizes = np.array([level["anchor_px"] for level in network.anchors], float)
    exponents = -network.targets["positive_lambda"] * np.log2(span_px / sizes) ** 2
    weights = np.exp(exponents - exponents.max())
    return np.floor(network.targets["positive_num"] * weights / weights.sum() + 0.5).astype(int)


def candidates(outputs, c, network):
    """Of each level, the cells of class c above the threshold, best first: scores [n] and corners [n, 8, 2], px."""
    for (cls, reg), level in zip(outputs, network.anchors):
        score = 1 / (1 + np.exp(-cls[0, c].reshape(-1)))
        offsets = reg[0, 16 * c : 16 * c + 16].reshape(2, 8, -1)  # 8 x, then 8 y
        usable = (score > network.threshold) & np.isfinite(offsets).all((0, 1))
        order = np.flatnonzero(usable)
        order = order[np.argsort(-score[order], kind="stable")]
        rows, columns = np.divmod(order, cls.shape[3])
        centers = level["stride_px"] * (np.stack([columns, rows]) + 0.5)  # [2, n]
        corners = centers[:, None] + offsets[:, :, order].astype(float) * level["anchor_px"]
        yield np.sqrt(score[order]), corners.transpose(2, 1, 0)


def correspondences(outputs, c, network):
    """Score, corners in the object's frame [8 n, 3] and their pixels [8 n, 2] of class c, or the reason for none."""
    levels = list(candidates(outputs, c, network))
    best, span = 0.0, 0.0
    for scores, corners in levels:  # as in training's targets, the extent says which levels answer
        if len(scores) and scores[0] > best:
            best = scores[0]
            span = max(span, np.ptp(corners[0], axis=0).max())
    if best == 0:
        return "no_cell"
    taken = [(s[:n], x[:n]) for (s, x), n in zip(levels, cells_per_level(span, network))]
    pixels = np.concatenate([x for _, x in taken])
    if not len(pixels):
        return "no_usable_cell"
    score = max(s[0] for s, _ in taken if len(s))
    return float(score), np.tile(network.corners[c], (len(pixels), 1)), pixels.reshape(-1, 2)


def distances(points, pixels, r, t, network):
    return np.linalg.norm(cv2.projectPoints(points, r, t, network.k, None)[0][:, 0] - pixels, axis=1)


def robust_weights(residuals, limit):
    """Weights by the likeliest of a Gaussian and four Student distributions, fading to 0 at ten standard deviations."""
    near = residuals[residuals < 2 * limit]
    if len(near) < 6:
        return None
    sigma = np.median(near) / 1.1774 * np.sqrt(2 * len(near) / (2 * len(near) - 6))
    cut = 10 * np.clip(sigma, 0.02 * limit, 0.5 * limit)
    squares = near[near < cut] ** 2
    n, unfitted = len(squares), max(len(squares) - 3, 1)
    scale = max(squares.sum() / (2 * unfitted), 1e-300)
    best, weights = 1 - n * np.log(scale) - unfitted, np.ones(len(residuals))
    for freedom in (8, 4, 2, 1):
        for _ in range(3):
            w = 1 / (freedom + squares / scale)
            scale = max((w * squares).sum() / (2 * w.sum()) * n / unfitted, 1e-300)
        likelihood = -n * np.log(scale) - (freedom + 2) / 2 * np.log1p(squares / (freedom * scale)).sum()
        if likelihood > best:
            best, weights = likelihood, (freedom + 2) / (freedom + residuals**2 / scale)
    return weights * np.clip(1 - (residuals / cut) ** 2, 0, None) ** 2


def reweighted(points, pixels, r, t, limit, network):
    """The pose after rounds of weighted Gauss-Newton."""
    for _ in range(6):
        weights = robust_weights(distances(points, pixels, r, t, network), limit)
        if weights is None:
            break
        for _ in range(4):
            seen, jacobian = cv2.projectPoints(points, r, t, network.k, None)[:2]
            j, w = jacobian[:, :6], np.repeat(weights, 2)
            step = np.linalg.lstsq((j * w[:, None]).T @ j, (j * w[:, None]).T @ (pixels - seen[:, 0]).reshape(-1), rcond=None)[0]
            r, t = r + step[:3, None], t + step[3:, None]
    return r, t


def pose(points, pixels, network):
    """R, t (mm), inliers and the factor of the inlier distance: 1, where that finds no pose 2, then 4."""
    for factor in (1, 2, 4) if network.ransac.get("widen", True) else (1,):
        found = pose_within(points, pixels, factor * network.ransac["inlier_px"], network)
        if found is not None:
            return *found, factor
    return None


def pose_within(points, pixels, limit, network):
    """R, t (mm), inliers: RANSAC, least squares on the inliers, chosen anew until they stay, then the robust fit."""
    cv2.setRNGSeed(0)
    found, r, t, inliers = cv2.solvePnPRansac(
        points, pixels, network.k, None, iterationsCount=network.ransac["max_iterations"], reprojectionError=limit,
        confidence=network.ransac["confidence"], flags=cv2.SOLVEPNP_EPNP)
    if not found or inliers is None:
        return None
    inliers = inliers[:, 0]
    for _ in range(5):
        r, t = cv2.solvePnPRefineLM(points[inliers], pixels[inliers], network.k, None, r, t)
        now = np.flatnonzero(distances(points, pixels, r, t, network) < limit)
        if np.array_equal(now, inliers) or len(now) < 4:
            break
        inliers = now
    r, t = reweighted(points, pixels, r, t, limit, network)
    inliers = np.flatnonzero(distances(points, pixels, r, t, network) < limit)
    if t[2] <= 0 or len(inliers) < max(4, network.min_inliers * len(points)):
        return None
    return cv2.Rodrigues(r)[0], t[:, 0], inliers


def read_camera(path):
    camera = json.load(open(path))
    if "cam_K" in camera:
        k = np.array(camera["cam_K"], float).reshape(3, 3)
    else:
        k = np.array([[camera["fx"], 0, camera["cx"]], [0, camera["fy"], camera["cy"]], [0, 0, 1]], float)
    distortion = camera.get("distortion")
    return k, None if distortion is None else np.array(distortion, float)


def predict(path, k, distortion, network):
    """A line for each class, with the keys of `mqat predict`."""
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        sys.exit(f"{path} is missing or not a picture")
    outputs = network.outputs(to_internal(picture[..., ::-1], k, distortion, network))
    for c in range(len(network.corners)):
        line = {"image": path, "class": c}
        found = correspondences(outputs, c, network)
        if isinstance(found, str):
            yield {**line, "no_pose": found}
            continue
        score, points, pixels = found
        solved = pose(points, pixels, network)
        if solved is None:
            yield {**line, "no_pose": "no_consensus"}
            continue
        r, t, inliers, factor = solved
        yield {**line, "score": score / factor, "R": r.reshape(-1).tolist(), "t": t.tolist(), "inliers": len(inliers),
               "correspondences": len(points), "inlier_px": factor * network.ransac["inlier_px"]}


def compare(lines, path):
    """Prints how far the poses are from those of `mqat predict`, by picture name and class."""
    theirs = {}
    for line in map(json.loads, open(path)):
        theirs[line["image"], line.get("class")] = line
    pairs = [(line, theirs[line["image"], line["class"]]) for line in lines if (line["image"], line["class"]) in theirs]
    if not pairs:
        sys.exit(f"{path} has none of these pictures: names must be spelled alike")
    both = [(a, b) for a, b in pairs if "R" in a and "R" in b]
    turns, shifts = [], []
    for a, b in both:
        turn = np.array(a["R"]).reshape(3, 3) @ np.array(b["R"]).reshape(3, 3).T
        turns.append(np.degrees(np.linalg.norm(cv2.Rodrigues(turn)[0])))
        shifts.append(np.linalg.norm(np.subtract(a["t"], b["t"])) / np.linalg.norm(b["t"]))
    one_only = sum(("R" in a) != ("R" in b) for a, b in pairs)
    print(f"{len(pairs)} lines, {len(both)} poses of both, {one_only} of one only", file=sys.stderr)
    if both:
        print(f"rotation: median {np.median(turns):.3f}, 95 % {np.percentile(turns, 95):.3f}, largest {max(turns):.3f} deg; "
              f"translation over distance: median {np.median(shifts):.5f}, 95 % {np.percentile(shifts, 95):.5f}, "
              f"largest {max(shifts):.5f}", file=sys.stderr)
    return one_only, turns, shifts


def is_near(lines, one_only, turns, shifts):
    """Whether another solver's poses are as near as they should be (docs/format.md, PnP)."""
    return len(turns) > 0 and np.median(turns) < 0.5 and np.median(shifts) < 0.005 and one_only <= 0.1 * len(lines) + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("camera")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--boxes", help="8 corners of each class, mm, where the file does not carry them")
    parser.add_argument("--compare", metavar="JSONL", help="predictions of `mqat predict`; exit code 1 where the median differs by more "
                        "than 0.5 deg or 0.5 %% of the distance")
    arguments = parser.parse_args()
    network = Network(arguments.network, arguments.boxes)
    k, distortion = read_camera(arguments.camera)
    lines = [line for path in arguments.pictures for line in predict(path, k, distortion, network)]
    for line in lines:
        print(json.dumps(line))
    if arguments.compare:
        sys.exit(0 if is_near(lines, *compare(lines, arguments.compare)) else 1)


if __name__ == "__main__":
    main()
