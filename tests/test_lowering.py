"""The whole training step lowers for 256 accelerators that need not be present.

The step is the one that `Trainer` jits: photometry, encoder, projector, loss and
optimiser, with its shardings and donation. Nothing is compiled or run. The tests check
that a program results, that it is split over all devices, and that none of its arrays
holds the scores of all pairs of embeddings.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from benchmarks import scaling
from benchmarks.collectives import collective_bytes, largest_array
from polyview import devices
from polyview.training.trainer import Trainer

DEVICES = 256
ROWS = 512  # unique samples, two per device
RESNET = {
    "partial": "polyview.nn.resnet:resnet_tiny",
    "width": 4,
    "stem": "small",
    "in_channels": 1,
}
VIT = {
    "partial": "polyview.nn.vit:ViT",
    "width": 16,
    "depth": 2,
    "heads": 2,
    "patch": 4,
    "image": 8,
    "in_channels": 1,
}
OBJECTIVES = [
    ("geometric", 3),
    ("arithmetic", 3),
    ("sufficient_statistics", 3),
    ("multi_crop", 3),
    ("nt_xent", 2),
    ("supcon", 3),
    ("mv_infonce", 3),
    ("mv_dhel", 3),
]


def exported(config, monkeypatch, data: int, fsdp: int):
    """The step of a config for TPU and CUDA, on an abstract mesh."""
    # Tile sizes and forms of convolutions depend on the machine that traces.
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = AbstractMesh((data, fsdp), devices.AXES, axis_types=(AxisType.Auto,) * 2)
    monkeypatch.setattr(devices, "make_mesh", lambda **_: mesh)
    monkeypatch.setattr(devices, "put_replicated", lambda tree, mesh: tree)
    run = Trainer(config)
    number, seed = (jax.ShapeDtypeStruct((), t) for t in (np.int32, np.uint32))
    with jax.sharding.use_abstract_mesh(mesh):
        inputs = run.shape, run.fixed, run.trace(), number, seed
        return jax.export.export(run.step, platforms=("tpu", "cuda"))(*inputs)


def elements(text: str) -> list[int]:
    """The number of elements of each array type in a StableHLO program."""
    sizes = set(re.findall(r"tensor<((?:\d+x)+)[a-z]", text))
    return [math.prod(map(int, size.rstrip("x").split("x"))) for size in sizes]


def holds_no_scores_of_all(program, m: int) -> None:
    assert program.nr_devices == DEVICES
    assert program.platforms == ("tpu", "cuda")
    text = program.mlir_module()
    # The input rows are split over all devices; the old state's memory is reused.
    assert re.search(
        rf'tensor<{ROWS}x{m}x8x8x1xui8> {{sdy.sharding = [^[]*\[{{"data", "fsdp"}}',
        text,
    )
    assert "tf.aliasing_output" in text or "jax.buffer_donor" in text
    assert re.search(r"stablehlo\.(all_gather|collective_permute)", text)
    assert max(elements(text)) < (ROWS * m) ** 2


def small(digits, argument: str, encoder: dict):
    """The digits config with photometry and an encoder that lowers quickly."""
    config = digits(argument, batch_size=ROWS)
    tower = config.model.towers.image
    with config.unlocked():
        types = {key: tower.encoder[key] for key in ("dtype", "param_dtype")}
        tower.encoder = encoder | types
        tower.photometry = {"target": "polyview.nn.photometry:Photometry"}
    return config


@pytest.mark.parametrize(("objective", "m"), OBJECTIVES)
def test_a_step_lowers_for_256_tpus_and_gpus(objective, m, digits, monkeypatch):
    config = small(digits, f"objective={objective},views={m}", RESNET)
    holds_no_scores_of_all(exported(config, monkeypatch, DEVICES, 1), m)


def test_the_listing_variant_of_the_arithmetic_loss_lowers(digits, monkeypatch):
    config = small(digits, "objective=arithmetic,views=3", RESNET)
    config.objective.loss.variant = "listing"
    holds_no_scores_of_all(exported(config, monkeypatch, DEVICES, 1), 3)


def test_a_bfloat16_vit_lowers_with_sharded_parameters(digits, monkeypatch):
    monkeypatch.setattr(devices, "SMALLEST_SPLIT", 2**8)
    config = small(digits, "views=3,dtype=bfloat16", VIT)
    program = exported(config, monkeypatch, 32, 8)
    holds_no_scores_of_all(program, 3)
    split = re.search(r'sdy.sharding = [^[]*\[\{\}, {"fsdp"}\]', program.mlir_module())
    assert split, "no parameter is split over fsdp"


# Readers of compiled programs, used by tests and benchmarks.

PROGRAM = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %wide = f32[4,8,1000]{2,1,0} broadcast(%p), dimensions={0,1}
  ROOT %back = f32[4,8]{1,0} reduce(%wide, %p), dimensions={2}, to_apply=%add
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %z = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %next = bf16[4,8]{1,0} collective-permute(%z), source_target_pairs={{0,1},{1,0}}
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%i, /*index=1*/%next)
}

%condition (state.1: (s32[], bf16[4,8])) -> pred[] {
  %state.1 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %limit = s32[] constant(5)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%twice (q: f32[16]) -> f32[16] {
  %q = f32[16]{0} parameter(0)
  ROOT %r = f32[16]{0} all-reduce(%q), replica_groups={{0,1}}, to_apply=%add
}

%never (q.1: f32[16]) -> f32[16] {
  ROOT %q.1 = f32[16]{0} parameter(0)
}

ENTRY %main (a: f32[4,8], b: bf16[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = bf16[4,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%a), dimensions={0}
  %all = f32[32,8]{1,0} all-gather-done(%start)
  %part = f32[4,8]{1,0} reduce-scatter(%all), dimensions={0}, to_apply=%add
  %init = (s32[], bf16[4,8]{1,0}) tuple(%zero, %b)
  %loop = (s32[], bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
  %v = f32[16]{0} constant({...})
  %c = f32[16]{0} conditional(%zero, %v, %v), branch_computations={%twice, %never}
  %two = (f32[2]{0}, s32[3]{0}) all-to-all(%zero, %zero), replica_groups={{0,1}}
  ROOT %f = f32[4,8]{1,0} fusion(%part), kind=kLoop, calls=%fused
}
"""


def test_collective_bytes_count_loops_branches_and_dtypes():
    assert collective_bytes(PROGRAM) == {
        "all-gather": 32 * 8 * 4,
        "all-reduce": 16 * 4,
        "all-to-all": 2 * 4,
        "collective-permute": 5 * 4 * 8 * 2,
        "reduce-scatter": 32 * 8 * 4,
    }
    known = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    seven_trips = collective_bytes(PROGRAM.replace("body=%body", known))
    assert seven_trips["collective-permute"] == 7 * 4 * 8 * 2


def test_a_loop_of_unknown_trip_count_is_an_error():
    unknown = PROGRAM.replace("constant(5)", "parameter(1)")
    with pytest.raises(ValueError, match="the trip count of the loop"):
        collective_bytes(unknown)


def test_largest_array_ignores_arrays_inside_fusions():
    assert largest_array(PROGRAM) == (32 * 8, "f32[32,8]")


def test_received_bytes_per_device_follow_ring_algorithms():
    kinds = dict.fromkeys(collective_bytes(PROGRAM), 800)
    by_kind = {kind: scaling.bytes_in({kind: 800}, 8) for kind in kinds}
    assert by_kind == {
        "all-gather": 700,  # seven blocks of 100 bytes
        "all-reduce": 1400,  # reduce-scatter, then all-gather
        "all-to-all": 700,
        "collective-permute": 800,
        "reduce-scatter": 700,
    }


def test_a_freshly_compiled_program_is_read():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def local(z):
        def hop(z, _):
            z = jax.lax.ppermute(z, "data", [(i, (i + 1) % 8) for i in range(8)])
            return z, jax.lax.psum(z.sum(), "data")

        z, sums = jax.lax.scan(hop, z, None, length=5)
        everything = jax.lax.all_gather(z, "data", tiled=True) * sums.sum()
        return jax.lax.psum_scatter(jnp.sin(everything), "data", tiled=True)

    rows = PartitionSpec("data")
    mapped = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows)
    z = jax.ShapeDtypeStruct((64, 3), jnp.float32, sharding=NamedSharding(mesh, rows))
    text = jax.jit(mapped).lower(z).compile().as_text()
    assert collective_bytes(text) == {
        "all-gather": 64 * 3 * 4,
        "all-reduce": 5 * 4,
        "all-to-all": 0,
        "collective-permute": 5 * 8 * 3 * 4,
        "reduce-scatter": 64 * 3 * 4,
    }
    assert largest_array(text) == (64 * 3, "f32[64,3]")
