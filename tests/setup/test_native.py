"""What a build of llama.cpp depends on, and when it is done already."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.accelerator import Toolchains, flags
from scripts.native import Recipe, cpuinfo_identity, install, is_built, processor, recipe
from scripts.setup import version_of

NOTHING = Toolchains(nvcc=None, hipcc=None, nvidia_gpu=False, amd_gpu=False, apple_silicon=False)


@pytest.fixture
def wanted() -> Recipe:
    return recipe("0.3.36", "cpu", flags("cpu", NOTHING), "Linux x86_64 Some CPU")


def test_the_recipe_has_rpc_and_is_for_this_processor(wanted: Recipe) -> None:
    assert {"-DGGML_RPC=ON", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=ON", "-DGGML_METAL=OFF"} <= set(wanted.flags)


def test_any_other_field_is_another_build(wanted: Recipe) -> None:
    others = [
        replace(wanted, version="0.3.37"),
        replace(wanted, accelerator="cuda"),
        replace(wanted, flags=wanted.flags[:-1]),
        replace(wanted, processor="Linux x86_64 Another CPU"),
    ]
    assert len({other.key for other in (wanted, *others)}) == 5
    assert replace(wanted).key == wanted.key


def put_built(folder: Path) -> None:
    folder.mkdir()
    for name in ("libllama.so.0", "libggml.so", "libggml-rpc.dylib", "llama-bench", "notes.txt"):
        (folder / name).write_text(name)
    (folder / "libllama.so").symlink_to("libllama.so.0")


def test_installing(tmp_path: Path, wanted: Recipe) -> None:
    put_built(tmp_path / "bin")
    libraries = tmp_path / "lib" / "mesh-native"
    assert not is_built(libraries, wanted)
    install(tmp_path / "bin", libraries, wanted)
    assert is_built(libraries, wanted)
    assert not is_built(libraries, replace(wanted, accelerator="cuda"))
    names = {path.name for path in libraries.iterdir()}
    assert names == {"libllama.so", "libllama.so.0", "libggml.so", "libggml-rpc.dylib", "build.json"}
    assert (libraries / "libllama.so").is_symlink(), "or the folder would be twice as large"
    assert (libraries / "libllama.so").read_text() == "libllama.so.0"


def test_installing_over_an_older_build_and_over_what_an_interrupted_one_left(tmp_path: Path, wanted: Recipe) -> None:
    put_built(tmp_path / "bin")
    libraries = tmp_path / "lib" / "mesh-native"
    install(tmp_path / "bin", libraries, replace(wanted, version="0.3.35"))
    (libraries / "libold.so").write_text("old")
    (tmp_path / "lib" / "mesh-native.new").mkdir()
    (tmp_path / "lib" / "mesh-native.new" / "libhalf.so").write_text("half")
    install(tmp_path / "bin", libraries, wanted)
    assert is_built(libraries, wanted)
    assert {path.name for path in (tmp_path / "lib").iterdir()} == {"mesh-native"}
    assert not {"libold.so", "libhalf.so"} & {path.name for path in libraries.iterdir()}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"key": 7}'])
def test_a_broken_build_json_is_no_build(tmp_path: Path, wanted: Recipe, content: str) -> None:
    (tmp_path / "build.json").write_text(content)
    assert not is_built(tmp_path, wanted)


def test_build_json_says_what_was_built(tmp_path: Path, wanted: Recipe) -> None:
    put_built(tmp_path / "bin")
    install(tmp_path / "bin", tmp_path / "out", wanted)
    written = json.loads((tmp_path / "out" / "build.json").read_text())
    assert (written["version"], written["accelerator"], written["processor"]) == (
        wanted.version,
        wanted.accelerator,
        wanted.processor,
    )


CPUINFO = """\
processor\t: {number}
model name\t: Some CPU @ 2.10GHz
cpu MHz\t\t: {mhz}
flags\t\t: fpu sse2 avx2{extra}

"""


def test_a_processor_is_the_same_whatever_its_clock_and_cores() -> None:
    one = CPUINFO.format(number=0, mhz=2100.5, extra="")
    many = "".join(CPUINFO.format(number=number, mhz=800 + number, extra="") for number in range(64))
    assert cpuinfo_identity(one) == cpuinfo_identity(many) == "Some CPU @ 2.10GHz | fpu sse2 avx2"
    assert cpuinfo_identity(CPUINFO.format(number=0, mhz=1, extra=" avx512f")) != cpuinfo_identity(one)


def test_an_arm_processor() -> None:
    text = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    assert cpuinfo_identity(text) == "fp asimd sve | 0x41 | 0xd40"


def test_this_processor_is_always_the_same() -> None:
    assert processor() == processor()


@pytest.mark.parametrize(
    ("pin", "version"),
    [
        ("llama-cpp-python==0.3.36 \\\n    --hash=sha256:0\n", "0.3.36"),
        ("llama-cpp-python==0.3.36\n", "0.3.36"),
    ],
)
def test_the_pinned_version(pin: str, version: str) -> None:
    assert version_of(pin) == version


def test_the_real_pin_is_the_one_the_backend_asks_for() -> None:
    from backends.llama_cpp import backend

    pin = Path(__file__).parents[2] / "requirements" / "llama-cpp.txt"
    assert backend.requirements == (f"llama-cpp-python=={version_of(pin.read_text())}",)
