#!/usr/bin/env python3
"""The study of docs/results.md, on synthetic images, on the CPU; python3 with its standard library and a built mqat.

    scripts/study.py [DIR] [--jobs N] [--parts fpn,10.7,8] [--cells N] [--seeds 1,2,3] [--report]

runs what is missing and writes DIR/report. Stopped or killed, the same command goes on. DIR is logs/study.

Every network starts from the shipped full-precision weights and gets the same number of steps (EPOCHS short epochs
of EPOCH_IMAGES images of the list that it was pretrained on), whatever its method; the float controls have the same
stages and rates. Rates are chosen for each method on the validation list, with one seed; the test list
is read once for each finished network. Variables: TOPOLOGY, DEVICE, START (weights), DATA (a dataset instead of
rendered images) or IMAGES (options of mqat synth), EPOCH_IMAGES, WORKERS, MQAT (the program).
"""

import argparse
import concurrent.futures
import fcntl
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading

REPO = pathlib.Path(__file__).resolve().parent.parent
MQAT = os.environ.get("MQAT", str(REPO / "target/release/mqat"))
TOPOLOGY = os.environ.get("TOPOLOGY", "WidedepthTiny")
DEVICE = os.environ.get("DEVICE", "cpu")
START = os.environ.get("START", str(REPO / "problems/SwissCube/WidedepthTiny/pretrained.safetensors"))
IMAGES = os.environ.get(
    "IMAGES", "--train 12000 --val 400 --test 2000 --size 128 --depth 1.2d:3d --attitude 45 --seed 11"
).split()
DATA = os.environ.get("DATA")  # a dataset instead of rendered images
WORKERS = os.environ.get("WORKERS", "1")
EPOCH_IMAGES = int(os.environ.get("EPOCH_IMAGES", "672"))  # 42 steps of 16
EPOCHS = 12  # of every network: three stages of 4 or one of 12
RATES = [0.001, 0.003, 0.01]  # and three times beyond, while the best is at an end
WIDEST = 5  # rates of a method at most
TARGETS = {"10.7": 10.66, "8": 8.0}  # times smaller than 32-bit weights, by the paper's count
WIDTHS = "2,3,4,6,8"
FREEZE = [0.5, 0.75, 0.9, 1.0]  # INQ: fractions at the quarters of a stage
MODULES = ["backbone", "fpn", "head"]


def stage(module, weights, epochs, rate, afterwards="freeze"):
    """A stage of a plan file; `weights` None trains without quantizing."""
    if weights and weights["method"] == "inq":
        quarter = epochs // len(FREEZE)
        schedule = {str(i * quarter): fraction for i, fraction in enumerate(FREEZE)}
        weights = dict(weights, schedule=schedule, clear_optim_state_on_step=True)
    return {
        "name": "" if weights else f"float_{module.replace('*', 'all')}",
        "module": module if weights else None,
        "weights": weights,
        "afterwards": afterwards,
        "epochs": epochs,
        "batch_size": 16,
        "lr": {"base": rate, "decay": {"cosine": {"to": 0.02}}},
        "optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.001},
        "clip_norm": 5.0,
    }


class Study:
    def __init__(self, options):
        self.options = options
        self.out = pathlib.Path(options.dir).resolve()
        self.running, self.ended, self.guard = set(), False, threading.Lock()
        self.data = pathlib.Path(DATA).resolve() if DATA else self.out / "data"
        self.places = ["--topology", TOPOLOGY, "--data", str(self.data), "--device", DEVICE, "--quiet"]
        self.settings = [
            "--set", "training.full_precision=null",
            "--set", f"training.epoch_images={EPOCH_IMAGES}",
            "--set", f"training.valid_every={EPOCHS}",
            # Batch norms are estimated again in float rows as well, also for the choice of rates.
            "--set", "training.bn_always=true",
            "--set", "RUNTIME.NUM_THREADS=1",
            "--set", f"RUNTIME.NUM_WORKERS={WORKERS}",
            "--set", "experiment.pretrained=true",
            "--set", f"experiment.url={START}",
        ]

    # Commands

    def mqat(self, *args):
        """Runs mqat; stdout as text. Its messages go to DIR/log.txt."""
        environment = dict(os.environ, OMP_WAIT_POLICY="PASSIVE", MQAT_HOME=str(REPO))
        command = [MQAT, *map(str, args)]
        with open(self.out / "log.txt", "a") as log:
            with self.guard:
                if self.ended:
                    raise SystemExit("study: ended")
                # A session of its own: the study alone hears Ctrl-C, and stops its rows once.
                row = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
                )
                self.running.add(row)
            stdout, _ = row.communicate()
            with self.guard:
                self.running.discard(row)
        if row.returncode != 0:
            raise SystemExit(f"study: failed ({row.returncode}), see {self.out}/log.txt: mqat {' '.join(command[1:])}")
        return stdout

    def end(self):
        """Stops the rows that run, and waits until each has written its checkpoint; none begins any more."""
        with self.guard:
            self.ended = True
            rows = list(self.running)
        for row in rows:
            row.terminate()
        for row in rows:
            row.wait()

    def write(self, path, document):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(document, indent=1))
        part.rename(path)

    def plan_file(self, name, flow):
        """Writes the plan of a row; an existing row with another flow is an error."""
        path = self.out / "plans" / f"{name}.json"
        plan = {"format": 1, "flow": flow, "made_by": None, "table": []}
        if path.exists() and json.loads(path.read_text()) != plan:
            raise SystemExit(f"study: {path} has another flow than this row has now: name another folder, or remove its row")
        self.write(path, plan)
        return path

    def folder(self, name, seed):
        return self.out / "runs" / f"{name}-seed{seed}"

    def experiment(self, name, seed):
        return self.folder(name, seed) / "SwissCube" / TOPOLOGY / "exp000"

    def train(self, name, seed, flow, test=True):
        """One network, trained to its end and evaluated."""
        logs, exp = self.folder(name, seed), self.experiment(name, seed)
        plan = self.plan_file(f"{name}-seed{seed}", flow)
        if not (logs / "trained").exists():
            if (exp / "config.json").exists():
                args = ["--resume"]
            else:
                args = ["--flow", plan, "--seed", seed, *self.settings]
            self.mqat("train", *self.places, "--logs", logs, "--exp-id", 0, *args)
            (logs / "trained").touch()
        if test and not (exp / "eval/test/metrics.json").exists():
            self.mqat("test", *self.places, "--logs", logs, "--exp-id", 0)
        print(f"study: {name} seed {seed} is there", file=sys.stderr, flush=True)

    # What the bits are

    def bits(self, target, layerwise):
        """{pattern: bits} of the integer programme at a target: of modules, or of layers."""
        path = self.out / "plans" / f"{'layers' if layerwise else 'modules'}-{target}.json"
        if not path.exists():
            how = ["--layerwise"] if layerwise else ["--first", "smallest"]
            part = path.with_suffix(".new.json")
            part.unlink(missing_ok=True)
            self.mqat(
                "search", *self.places, *self.settings, "--seed", 1, "--dir", self.out / "search", "--bits", WIDTHS,
                "--method", "lsq", "--levels", "full", "--target-compression", TARGETS[target], "--out", part, *how,
            )
            part.rename(path)
        flow = json.loads(path.read_text())["flow"]
        if layerwise:
            bits = {layer: width for one in flow for layer, width in one["weights"]["layer_bits"].items()}
        else:
            bits = {one["module"]: one["weights"]["bits"] for one in flow}
        # 2^b levels everywhere: an entry with a number of levels of its own would overrule the row's.
        return {where: width if isinstance(width, int) else self.of_full(where, width) for where, width in bits.items()}

    def of_full(self, where, width):
        if width.get("levels") == "full" and width.get("n_levels") is None:
            return width["bits"]
        raise SystemExit(f"study: {where} has {width}, expected bits with 2^b levels")

    def order(self):
        """The modules, smallest first, as the search orders them when nothing is gained."""
        flow = json.loads((self.out / "plans" / "modules-10.7.json").read_text())["flow"]
        return [one["module"] for one in flow]

    # Flows

    def weights(self, method, bits):
        """Weights of a method at the same levels for INQ and LSQ: 2^b."""
        if isinstance(bits, dict):
            return {"method": method, "levels": "full", "layer_bits": bits}
        return {"method": method, "levels": "full", "bits": bits}

    def factorial(self, target, method, course, granularity, rate):
        """A flow of the factorial: `course` is joint, frozen or trained."""
        uniform = {"10.7": 3, "8": 4}[target]
        if granularity == "layer":
            of_layers = self.bits(target, True)
            bits = {m: {k: b for k, b in of_layers.items() if k.split(".")[0] == m} for m in MODULES}
            everything = of_layers
        else:
            of_modules = self.bits(target, False) if granularity == "module" else {m: uniform for m in MODULES}
            bits, everything = of_modules, of_modules
            if len(set(of_modules.values())) == 1:
                everything = next(iter(of_modules.values()))
        if course == "joint":
            return [stage("*", self.weights(method, everything), EPOCHS, rate)]
        afterwards = "train" if course == "trained" else "freeze"
        each = EPOCHS // len(MODULES)
        return [stage(m, self.weights(method, bits[m]), each, rate, afterwards) for m in self.order()]

    def floats(self, num_stages, rate):
        modules = ["*"] if num_stages == 1 else self.order()
        return [stage(m, None, EPOCHS // num_stages, rate) for m in modules]

    # Parts

    def rate_flow(self, method, rate):
        """All modules at 3 bits, jointly, or the FPN at 2."""
        if method == "float":
            return self.floats(1, rate)
        if method.startswith("fpn-"):
            return [stage("fpn", self.weights(method.removeprefix("fpn-"), 2), EPOCHS, rate)]
        return [stage("*", self.weights(method, 3), EPOCHS, rate)]

    def validation(self, name, seed):
        """The headline of the last validation of a run, percent."""
        lines = (self.experiment(name, seed) / "metrics.jsonl").read_text().splitlines()
        validations = [r for r in map(json.loads, lines) if r["kind"] == "validation"]
        return validations[-1]["score"]["value"]

    def methods(self):
        """What needs a rate: the float controls, and the methods of the parts."""
        of_all = ["inq", "lsq"] if set(self.options.parts) & set(TARGETS) else []
        of_fpn = ["fpn-inq", "fpn-lsq"] if "fpn" in self.options.parts else []
        return ["float", *of_all, *of_fpn]

    def choose_rates(self):
        """The best rate of each method on the validation list, one seed: of all modules, and of the FPN alone. The grid
        grows while the best is at its end."""
        path = self.out / "rates.json"
        table = json.loads(path.read_text())["validation_percent"] if path.exists() else {}
        for method in [m for m in self.methods() if m not in table]:
            rates = list(RATES)
            while True:
                self.run_all([(f"rate-{method}-{rate:g}", 1, self.rate_flow(method, rate), False) for rate in rates])
                scores = {rate: self.validation(f"rate-{method}-{rate:g}", 1) for rate in rates}
                best = max(scores, key=scores.get)
                if best not in (min(rates), max(rates)) or len(rates) >= WIDEST:
                    break
                rates.append(best * 3 if best == max(rates) else best / 3)
            table[method] = {f"{rate:g}": score for rate, score in sorted(scores.items())}
        chosen = {method: float(max(row, key=row.get)) for method, row in table.items()}
        self.write(path, {"chosen": chosen, "validation_percent": table})
        print(f"study: rates {chosen} of {table}", file=sys.stderr)

    def rate(self, method):
        return json.loads((self.out / "rates.json").read_text())["chosen"][method]

    def fpn_rows(self):
        rows = {"float-joint": self.floats(1, self.rate("float"))}
        inq, lsq = self.rate("fpn-inq"), self.rate("fpn-lsq")
        for bits in [8, 4, 3, 2, 1]:
            rows[f"fpn-inq-{bits}bit-odd"] = [stage("fpn", {"method": "inq", "bits": bits}, EPOCHS, inq)]
        for bits in [2]:
            rows[f"fpn-inq-{bits}bit-full"] = [stage("fpn", self.weights("inq", bits), EPOCHS, inq)]
        for bits in [8, 4, 3, 2]:
            rows[f"fpn-lsq-{bits}bit-full"] = [stage("fpn", self.weights("lsq", bits), EPOCHS, lsq)]
        rows["fpn-lsq-2bit-odd"] = [stage("fpn", {"method": "lsq", "bits": 2, "levels": "odd"}, EPOCHS, lsq)]
        return rows

    def cells(self, target):
        """The factorial, most telling cells first. A cell whose bits are those of an earlier one is left out: the
        programme may give all modules the same."""
        rows = {"float-joint": self.floats(1, self.rate("float")), "float-staged": self.floats(3, self.rate("float"))}
        order = [
            ("lsq", "joint", "uniform"), ("lsq", "joint", "layer"), ("lsq", "trained", "layer"), ("inq", "frozen", "module"),
            ("lsq", "frozen", "module"), ("lsq", "joint", "module"), ("lsq", "trained", "module"), ("lsq", "frozen", "layer"),
            ("inq", "joint", "layer"), ("inq", "joint", "uniform"), ("inq", "frozen", "layer"), ("inq", "joint", "module"),
            ("lsq", "trained", "uniform"), ("lsq", "frozen", "uniform"), ("inq", "frozen", "uniform"),
        ]
        for method, course, granularity in order[: self.options.cells]:
            flow = self.factorial(target, method, course, granularity, self.rate(method))
            name = f"{target}x-{method}-{course}-{granularity}"
            same = [other for other, known in rows.items() if known == flow]
            if same:
                print(f"study: {name} is {same[0]}: its bits are the same", file=sys.stderr)
            else:
                rows[name] = flow
        return rows

    def run_all(self, tasks):
        """(name, seed, flow, test) in their order, so many at a time."""
        pool = concurrent.futures.ThreadPoolExecutor(self.options.jobs)
        try:
            for done in concurrent.futures.as_completed([pool.submit(self.train, *task) for task in tasks]):
                done.result()
        except BaseException:
            self.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def starts(self):
        """The start as it is, and with its batch-norm statistics estimated again, evaluated on the same images."""
        again = self.out / "start" / "recalibrated.safetensors"
        again.parent.mkdir(parents=True, exist_ok=True)
        if not again.exists():
            self.mqat("recalibrate", START, "--out", again, "--topology", TOPOLOGY, "--data", self.data, "--quiet")
        for name, file in [("start", START), ("start-bn", again)]:
            out = self.out / "start" / name
            if not (out / "metrics.json").exists():
                self.mqat("test", *self.places, "--checkpoint", file, "--out", out)

    def run(self):
        parts, seeds = self.options.parts, self.options.seeds
        if not self.options.report:
            self.keep_settings()
            if not DATA:
                self.mqat("synth", "--out", self.data, *IMAGES, "--keep")
            for target in TARGETS:
                if target in parts:
                    self.bits(target, False), self.bits(target, True)
            if set(parts) & set(TARGETS) and not (self.out / "plans" / "modules-10.7.json").exists():
                self.bits("10.7", False)  # the order of the modules
            self.starts()
            self.choose_rates()
            tasks = []
            rows = [self.fpn_rows() if part == "fpn" else self.cells(part) for part in parts]
            for seed in seeds:  # all rows of a seed before those of the next: what is stopped early can be compared
                tasks += [(name, seed, flow, True) for some in rows for name, flow in some.items()]
            tasks = list({(name, seed): (name, seed, flow, test) for name, seed, flow, test in tasks}.values())
            self.run_all(tasks)
        self.report()

    def keep_settings(self):
        """What decides the rows: another folder for other settings."""
        path = self.out / "settings.json"
        settings = {
            "topology": TOPOLOGY, "start": START, "data": DATA or IMAGES, "epoch_images": EPOCH_IMAGES, "epochs": EPOCHS,
            "rates": RATES, "targets": TARGETS, "widths": WIDTHS, "freeze": FREEZE,
        }
        if not path.exists():
            self.write(path, settings)
        known = json.loads(path.read_text())
        other = [key for key in settings if known.get(key) != settings[key]]
        if other:
            raise SystemExit(f"study: {path} has other settings ({', '.join(other)}): name another folder, or remove it")

    def done(self, *patterns):
        """Folders of the runs of these names that were evaluated."""
        runs = self.out / "runs"
        found = [run for pattern in patterns for run in sorted(runs.glob(f"{pattern}-seed*"))]
        return [run for run in found if (run / "SwissCube" / TOPOLOGY / "exp000/eval/test/metrics.json").exists()]

    def report(self):
        for name, title, base, patterns in [
            ("fpn", "Bits of the FPN", "float-joint", ["float-joint", "fpn-*"]),
            *((f"{t}x-float", f"{t} times smaller, against float", "float-joint", ["float-*", f"{t}x-*"]) for t in TARGETS),
            *((f"{t}x", f"{t} times smaller, against uniform LSQ", f"{t}x-lsq-joint-uniform", ["float-*", f"{t}x-*"]) for t in TARGETS),
            *((f"{t}x-layer", f"{t} times smaller, against layer-wise LSQ", f"{t}x-lsq-joint-layer", ["float-*", f"{t}x-*"]) for t in TARGETS),
        ]:
            if not self.done(base) or not self.done(patterns[-1]):
                continue
            # The row `start`: with its batch norms estimated again, as all rows have them; and as it is.
            for end, start in [("", "start-bn"), ("-start-as-it-is", "start")]:
                self.mqat(
                    "report", "--quiet", *self.done(*patterns), "--paired", self.done(base)[0], "--title", title,
                    "--start", self.out / "start" / start, "--out", self.out / "report" / (name + end),
                )
            print(f"study: {self.out}/report/{name}/table.md", file=sys.stderr)


def interrupt(*_):
    raise KeyboardInterrupt


def wait_for(lock, folder):
    """Takes a folder's lock; an earlier study that still ends there is waited for."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"study: another study works in {folder}: waiting for its end", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def parts_of(text):
    parts = text.split(",")
    unknown = [part for part in parts if part not in ("fpn", *TARGETS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(unknown)}: expected fpn, {', '.join(TARGETS)}")
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", default=str(REPO / "logs/study"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="one-thread processes at a time")
    parser.add_argument("--parts", type=parts_of, default=["fpn", "10.7", "8"])
    parser.add_argument("--cells", type=int, help="only so many cells of the factorial at each size, most telling first")
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[1, 2, 3])
    parser.add_argument("--report", action="store_true", help="write the reports of what is there, run nothing")
    study = Study(parser.parse_args())
    study.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    with open(study.out / "lock", "w") as lock:
        wait_for(lock, study.out)
        try:
            study.run()
        except KeyboardInterrupt:
            study.end()
            raise SystemExit("study: stopped; the same command goes on") from None
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(study.out / "cpu_seconds.txt", "a") as file:
        file.write(f"{used.ru_utime + used.ru_stime:.0f}\n")


if __name__ == "__main__":
    main()
