#!/usr/bin/env python3
"""mqat beside Python programs that do the same, measured in turns: scripts/peers.sh runs it.

The network is the published WDR one, written down below; it is compared with mqat before anything is measured: its weights
are imported strictly, and both compute the same logits. Times are user + system CPU time of a call (a busy machine changes them
little) and wall time. A round measures each program once, in another order than the round before; ratios are of equal rounds.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOT_RUN = {}


def module(name):
    """A module, or none: what is missing is said."""
    try:
        return __import__(name)
    except Exception as error:  # a broken installation raises anything
        NOT_RUN[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        return None


np, torch, ort, ov, cv2 = (module(name) for name in ("numpy", "torch", "onnxruntime", "openvino", "cv2"))
if ort and "ORT_DYLIB_PATH" not in os.environ:
    # mqat runs its ONNX files in the same library.
    for library in sorted(Path(ort.__file__).parent.glob("capi/libonnxruntime.so*")):
        os.environ["ORT_DYLIB_PATH"] = str(library)


# ---- the network, in PyTorch -------------------------------------------------------------------------------------------


def network():
    """The published WDR network: Darknet-53, FPN with levels 3 to 7, head; keys as published."""
    nn = torch.nn

    def block(c_in, c_out, k, stride=1):
        conv = nn.Conv2d(c_in, c_out, k, stride, k // 2, bias=False)
        layers = {"conv": conv, "bn": nn.BatchNorm2d(c_out), "activ": nn.LeakyReLU(0.1, inplace=True)}
        return nn.Sequential(__import__("collections").OrderedDict(layers))

    class Residual(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.conv1, self.conv2 = block(c, c // 2, 1), block(c // 2, c, 3)

        def forward(self, x):
            return self.conv2(self.conv1(x)) + x

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential()
            self.features.add_module("init_block", block(3, 32, 3))
            c_in = 32
            for i, (c, units) in enumerate(zip((64, 128, 256, 512, 1024), (2, 3, 9, 9, 5)), 1):
                stage = nn.Sequential()
                stage.add_module("unit1", block(c_in, c, 3, 2))
                for unit in range(2, units + 1):
                    stage.add_module(f"unit{unit}", Residual(c))
                self.features.add_module(f"stage{i}", stage)
                c_in = c
            self.output = nn.Linear(1024, 1000)

        def forward(self, x):
            outputs = []
            for part in self.features:
                x = part(x)
                outputs.append(x)
            return outputs[1:]

    class Fpn(nn.Module):
        def __init__(self, width=256):
            super().__init__()
            wide = {2: 256, 3: 512, 4: 1024}
            self.inner_convs = nn.ModuleDict({str(i): nn.Conv2d(c, width, 1) for i, c in wide.items()})
            self.out_convs = nn.ModuleDict({str(i): nn.Conv2d(width, width, 3, 1, 1) for i in wide})
            top = {"p6": nn.Conv2d(1024, width, 3, 2, 1), "p7": nn.Conv2d(width, width, 3, 2, 1)}
            self.top_blocks = nn.ModuleDict(top)

        def forward(self, stages):
            levels, above = [], None
            for i in ("4", "3", "2"):
                merged = self.inner_convs[i](stages[int(i)])
                if above is not None:
                    merged = merged + nn.functional.interpolate(above, scale_factor=2, mode="nearest")
                levels.insert(0, self.out_convs[i](merged))
                above = merged
            p6 = self.top_blocks["p6"](stages[4])
            return [*levels, p6, self.top_blocks["p7"](torch.relu(p6))]

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.scale

    class Head(nn.Module):
        def __init__(self, width=256):
            super().__init__()

            def tower():
                parts = [(nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(32, width), nn.ReLU(True)) for _ in range(4)]
                return nn.Sequential(*(layer for part in parts for layer in part))

            self.cls_tower, self.pose_tower = tower(), tower()
            self.cls_logits, self.pose_pred = nn.Conv2d(width, 1, 3, 1, 1), nn.Conv2d(width, 16, 3, 1, 1)
            self.scales = nn.ModuleList(Scale() for _ in range(5))

        def forward(self, levels):
            cls = [self.cls_logits(self.cls_tower(x)) for x in levels]
            return cls, [scale(self.pose_pred(self.pose_tower(x))) for x, scale in zip(levels, self.scales)]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.fpn, self.head = Backbone(), Fpn(), Head()

        def forward(self, x):
            return self.head(self.fpn(self.backbone(x)))

    return Network()


def sensible(net, size):
    """Weights as an initialised network has them, and batch norm statistics of noise."""
    torch.manual_seed(0)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(torch.randn(1, 3, size, size))
    for norm in norms:
        norm.momentum = 0.1
    return net.eval()


def loss_of(outputs):
    """Focal loss of the logits and L1 of a few cells: what a step needs to have gradients everywhere."""
    cls, reg = outputs
    logits = torch.cat([c.flatten() for c in cls])
    p = torch.sigmoid(logits)
    focal = -0.75 * p**2 * torch.nn.functional.logsigmoid(-logits)
    return focal.sum() + sum(r.flatten(2)[:, :, :10].abs().sum() for r in reg)


# ---- measuring ---------------------------------------------------------------------------------------------------------


class Timed:
    """CPU and wall seconds of a call."""

    def __init__(self, call, per_call=1):
        self.call, self.per_call = call, per_call

    def __call__(self):
        before, wall = os.times(), time.perf_counter()
        self.call()
        wall = time.perf_counter() - wall
        after = os.times()
        return (after.user - before.user + after.system - before.system) / self.per_call, wall / self.per_call


class Ours:
    """A subject of `mqat bench`: its median over a few calls, in a process of its own."""

    def __init__(self, mqat, words, subject=0, rounds=3):
        self.command = [mqat, "-q", "bench", *words, "--json", "--rounds", str(rounds), "--warm-up", "1"]
        self.subject = subject

    def __call__(self):
        report = json.loads(subprocess.run(self.command, check=True, stdout=subprocess.PIPE).stdout)
        found = report["subjects"][self.subject]
        return found["cpu_seconds_per_item"]["median"], found["seconds_per_item"]["median"]


def quartiles(values):
    q = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": q[1], "q1": q[0], "q3": q[2]}


def measure(row, subjects, rounds, base):
    """Samples of each subject in turns, and the ratios to `base` (the first where that did not run)."""
    names, samples = list(subjects), {name: [] for name in subjects}
    for round_ in range(rounds):
        order = names[round_ % len(names) :] + names[: round_ % len(names)]
        for name in order if round_ // len(names) % 2 == 0 else reversed(order):
            samples[name].append(subjects[name]())
            print(f"{row}: round {round_ + 1} of {rounds}, {name}", file=sys.stderr)
    base = base if base in samples else names[0]
    found = {"row": row, "base": base, "rounds": rounds, "subjects": {}}
    for name in names:
        ratios = [[a[i] / max(b[i], 1e-12) for a, b in zip(samples[name], samples[base])] for i in (0, 1)]
        found["subjects"][name] = {
            "cpu_s": quartiles([s[0] for s in samples[name]]),
            "wall_s": quartiles([s[1] for s in samples[name]]),
            "cpu_ratio": quartiles(ratios[0]),
            "wall_ratio": quartiles(ratios[1]),
        }
    return found


def show(found):
    spread = lambda q, digits: f"{q['median']:.{digits}f} ({q['q1']:.{digits}f}-{q['q3']:.{digits}f})"
    fastest = min(s["cpu_s"]["median"] for s in found["subjects"].values())
    unit, factor = ("us", 1e6) if fastest < 1e-3 else ("ms", 1e3)
    print(f"\n{found['row']}: {found['rounds']} rounds in turns; ratios to {found['base']}, median (quartiles)")
    width = max(map(len, found["subjects"]))
    print(f"  {'':{width}}  {'CPU ' + unit:>24}  {'ratio':>20}  {'wall ' + unit:>24}  {'ratio':>20}")
    for name, s in found["subjects"].items():
        times = [{k: factor * v for k, v in s[key].items()} for key in ("cpu_s", "wall_s")]
        cells = [spread(times[0], 1), spread(s["cpu_ratio"], 3), spread(times[1], 1), spread(s["wall_ratio"], 3)]
        print(f"  {name:{width}}  {cells[0]:>24}  {cells[1]:>20}  {cells[2]:>24}  {cells[3]:>20}")


# ---- rows ----------------------------------------------------------------------------------------------------------------


class Files:
    """The network as files for mqat and the runtimes."""

    def __init__(self, mqat, folder, net, size, data):
        at = lambda name: str(folder / name)
        torch.save(net.state_dict(), at("net.pth"))
        run = lambda *words: subprocess.run([mqat, "-q", *words], check=True, stdout=subprocess.DEVNULL)
        base = ["--problem", "SwissCube", "--topology", "Widedepth"]
        run("import", at("net.pth"), "--out", at("net.safetensors"), *base)
        sized = ["--set", f"INPUT.INTERNAL_WIDTH={size}", "--set", f"INPUT.INTERNAL_HEIGHT={size}"]
        self.net, self.onnx, self.int8 = at("net.safetensors"), at("net.onnx"), at("int8.onnx")
        sized = sized if size != 512 else []
        run("export", self.net, "--format", "onnx", "--out", self.onnx, *sized)
        if data:
            run("export", self.net, "--format", "onnx", "--out", self.int8, "--calibrate", "4", "--data", data, *sized)
        else:
            self.int8 = None


def forward(arguments, files, net):
    """One image through the network, in evaluation mode."""
    n, size = arguments.batch, arguments.size
    x = torch.randn(n, 3, size, size)
    subjects = {}
    no_grad = torch.inference_mode
    with no_grad():
        theirs = net(x)[0]

    def eager(model, images):
        def call():
            with no_grad():
                model(images)

        return Timed(call, n)

    subjects["torch eager"] = eager(net, x)
    last = network()
    last.load_state_dict(net.state_dict())
    last = last.eval().to(memory_format=torch.channels_last)
    subjects["torch channels_last"] = eager(last, x.to(memory_format=torch.channels_last))
    if arguments.compile:
        compiled = torch.compile(net)
        try:
            with no_grad():
                compiled(x)
            subjects["torch.compile"] = eager(compiled, x)
        except Exception as error:
            NOT_RUN["torch.compile"] = str(error).splitlines()[0]
    common = ["--batch", str(n), "--threads", str(arguments.threads), "--device", "cpu"]
    subjects["mqat libtorch"] = Ours(arguments.mqat, ["forward", "--checkpoint", files.net, "--size", str(size), *common])
    if ort:
        for name, file in (("float", files.onnx), ("int8 of mqat", files.int8)):
            if file is None:
                continue
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = arguments.threads, 3
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            feed = {"images": x.numpy()}
            if name == "float":
                ours = session.run(["cls_p3"], feed)[0]
                off = float(np.abs(ours - theirs[0].numpy()).max() / np.abs(theirs[0].numpy()).max())
                print(f"logits of mqat's file and of the PyTorch network differ by {off:.1e} of the largest", file=sys.stderr)
                if off > 1e-3:
                    sys.exit("peers.py: that is another network: the comparison means nothing")
            subjects[f"ONNX Runtime {name}"] = Timed(lambda s=session, f=feed: s.run(None, f), n)
        try:
            subjects["mqat ort float"] = Ours(arguments.mqat, ["engine", files.onnx, *common])
            subjects["mqat ort float"]()
            if files.int8:
                subjects["mqat ort int8"] = Ours(arguments.mqat, ["engine", files.int8, *common])
        except subprocess.CalledProcessError:
            NOT_RUN["mqat ort"] = "ONNX Runtime's library is missing: ./setup.sh --with-ort"
            subjects.pop("mqat ort float")
    if ov:
        core = ov.Core()
        limit = {"INFERENCE_NUM_THREADS": arguments.threads}
        for name, file in (("float", files.onnx), ("int8 of mqat", files.int8)):
            if file is not None:
                request = core.compile_model(file, "CPU", limit).create_infer_request()
                subjects[f"OpenVINO {name}"] = Timed(lambda r=request: r.infer({"images": x.numpy()}), n)
    for subject in subjects.values():
        subject()
    return measure(f"forward, {size} px, batch {n}", subjects, arguments.rounds, "torch eager")


def train(arguments, files, net):
    """A step of training: forward, losses, backward, clipping, optimizer."""
    n, size = arguments.batch, arguments.size
    images = torch.randn(n, 3, size, size)

    def step(model, x):
        model.train()
        used = [p for name, p in model.named_parameters() if not name.startswith("backbone.output")]
        optimizer = torch.optim.SGD(used, lr=1e-7, momentum=0.9)

        def call():
            optimizer.zero_grad()
            loss_of(model(x)).backward()
            torch.nn.utils.clip_grad_norm_(used, 10.0)
            optimizer.step()

        return Timed(call)

    def copy():
        model = network()
        model.load_state_dict(net.state_dict())
        return model

    last = torch.channels_last
    subjects = {
        "torch eager": step(copy(), images),
        "torch channels_last": step(copy().to(memory_format=last), images.to(memory_format=last)),
    }
    words = ["train-step", "--topology", "Widedepth", "--size", str(size), "--batch", str(n), "--threads", str(arguments.threads)]
    words += ["--device", "cpu", *(["--data", arguments.data] if arguments.data else [])]
    for i, name in enumerate(("float", "INQ", "LSQ")):
        subjects[f"mqat {name}"] = Ours(arguments.mqat, [*words, "--method", "lsq" if name == "LSQ" else "inq"], min(i, 1), 2)
    for name in ("torch eager", "torch channels_last"):
        subjects[name]()
    return measure(f"train step, {size} px, batch {n}", subjects, arguments.rounds, "torch eager")


def pnp(arguments):
    """80 sightings of a cube's corners, 1 px of noise, a fraction of them anywhere."""
    rng = np.random.default_rng(3)
    k = np.array([[607.573, 0, 512], [0, 607.573, 512], [0, 0, 1.0]])
    half = 178.46 / 12**0.5
    cube = np.array([[x, y, z] for x in (-half, half) for y in (-half, half) for z in (-half, half)])
    rows = []
    for fraction in (0.0, 0.3):
        problems = []
        for _ in range(100):
            z = rng.uniform(300, 1700)
            turn, t = rng.uniform(-3, 3, 3), np.array([rng.uniform(-0.4, 0.4) * z, rng.uniform(-0.4, 0.4) * z, z])
            points = np.tile(cube, (10, 1))
            pixels = cv2.projectPoints(points, turn, t, k, None)[0][:, 0] + rng.normal(0, 1, (80, 2))
            wrong = rng.random(80) < fraction
            pixels[wrong] = rng.uniform(0, 1024, (wrong.sum(), 2))
            problems.append((points, pixels))

        def ransac(method, problems=problems):
            def call():
                for points, pixels in problems:
                    cv2.solvePnPRansac(points, pixels, k, None, reprojectionError=5.0, iterationsCount=100, flags=method)

            return Timed(call, len(problems))

        subjects = {"OpenCV EPnP": ransac(cv2.SOLVEPNP_EPNP), "OpenCV AP3P": ransac(cv2.SOLVEPNP_AP3P)}
        words = ["pnp", "--points", "80", "--noise", "1", "--outliers", str(fraction)]
        subjects["mqat"] = Ours(arguments.mqat, words)
        rows.append(measure(f"PnP, 80 points, {fraction:.0%} outliers", subjects, max(arguments.rounds, 5), "OpenCV EPnP"))
    return rows


def loader(arguments):
    """A training image: read, decode, warp to the network's camera, normalise."""
    names = (Path(arguments.data) / "training.txt").read_text().split()[:16]
    size = arguments.size

    def call():
        for name in names:
            image = cv2.imread(str(Path(arguments.data) / name))
            scale = size / image.shape[1]
            warp = np.array([[scale, 0, 0], [0, scale, 0], [0, 0, 1.0]])
            image = cv2.warpPerspective(image, warp, (size, size), flags=cv2.INTER_LINEAR)[..., ::-1]
            ((image.astype(np.float32) / 255 - 0.5) / 0.25).transpose(2, 0, 1).copy()

    words = ["loader", "--topology", "Widedepth", "--size", str(size), "--data", arguments.data, "--workers", "0"]
    words += ["--augment", "off", "--images", "16"]
    subjects = {"OpenCV and numpy": Timed(call, len(names)), "mqat": Ours(arguments.mqat, words)}
    return measure("loader, an image", subjects, max(arguments.rounds, 5), "OpenCV and numpy")


def synthetic(mqat, folder):
    """Rendered images of SwissCube's size, as JPEG."""
    out = str(folder / "data")
    words = ["synth", "--out", out, "--train", "16", "--val", "2", "--test", "2", "--size", "1024", "--format", "jpg"]
    subprocess.run([mqat, "-q", *words], check=True, stdout=subprocess.DEVNULL)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mqat", default="target/release/mqat")
    parser.add_argument("--size", type=int, default=512, help="width and height of the network's input, px")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", default="forward,train,pnp,loader", help="what to measure")
    parser.add_argument("--data", help="a dataset in SwissCube's layout [default: a rendered one]")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: minutes of compilation")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    unknown = set(rows) - {"forward", "train", "pnp", "loader"}
    if unknown:
        parser.error(f"--rows: unknown {', '.join(sorted(unknown))}")
    if cv2:
        cv2.setNumThreads(1)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): trust CPU times and ratios", file=sys.stderr)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments.data = arguments.data or synthetic(arguments.mqat, folder)
        if torch is None:
            NOT_RUN.setdefault("forward, train", "no torch")
        else:
            torch.set_num_threads(arguments.threads)
            if {"forward", "train"} & set(rows):
                net = sensible(network(), arguments.size)
                files = Files(arguments.mqat, folder, net, arguments.size, arguments.data)
            if "forward" in rows:
                found.append(forward(arguments, files, net))
            if "train" in rows:
                found.append(train(arguments, files, net))
        if cv2 and "pnp" in rows:
            found += pnp(arguments)
        if cv2 and "loader" in rows:
            found.append(loader(arguments))
    for row in found:
        show(row)
    for what, why in NOT_RUN.items():
        print(f"not run: {what}: {why}")
    if arguments.json:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": arguments.threads, "load": load}
        versions = {m.__name__: m.__version__ for m in (torch, ort, ov, cv2, np) if m}
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        document = {"machine": machine, "versions": versions, "peers_peak_gb": peak_gb, "rows": found, "not_run": NOT_RUN}
        Path(arguments.json).write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
