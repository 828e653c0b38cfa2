"""Checkpoints: other trainers' names, wrappers, and files that must be refused."""

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fr_edge.distill.checkpoint_layouts import to_our_names
from fr_edge.distill.networks import NETWORKS, IResNet, build_network, network_name
from fr_edge.distill.published_networks import edgeface_of
from fr_edge.distill.weights import load_network, save_network
from fr_edge.errors import MachineError, ModelError, UsageError


def block(prelu: bool = True, names: tuple[str, ...] = ("conv", "bn", "prelu")) -> nn.Module:
    """Stand-ins of one channel: only the names and their order matter here."""
    parts = [nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.PReLU(1)]
    return nn.Sequential(OrderedDict(zip(names, parts if prelu else parts[:2], strict=False)))


def bottleneck() -> nn.Module:
    parts = {"conv": block(), "conv_dw": block(), "project": block(prelu=False)}
    return nn.Sequential(OrderedDict(parts))


def repeated(count: int) -> nn.Module:
    model = nn.Sequential(*[bottleneck() for _ in range(count)])
    return nn.Sequential(OrderedDict(model=model))


def adadistill_names() -> list[str]:
    """The 331 names that the official repository's MobileFaceNet saves, in its order."""
    tail = {
        "conv_6_dw": block(prelu=False),
        "linear": nn.Linear(1, 1, bias=False),
        "bn": nn.BatchNorm1d(1, affine=False),
    }
    parts = {
        "conv1": block(),
        "conv2_dw": block(),
        "conv_23": bottleneck(),
        "conv_3": repeated(4),
        "conv_34": bottleneck(),
        "conv_4": repeated(6),
        "conv_45": bottleneck(),
        "conv_5": repeated(2),
        "conv_6_sep": block(),
        "output_layer": nn.Sequential(OrderedDict(tail)),
    }
    return list(nn.Sequential(OrderedDict(parts)).state_dict())


def layers(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*parts)))


def mbf_names() -> list[str]:
    """The names that insightface's mbf saves, in its order."""

    def conv(prelu: bool = True) -> nn.Module:
        return layers(
            *[nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.PReLU(1)][: 2 + prelu]
        )

    def deep() -> nn.Module:
        return layers(conv(), conv(), conv(prelu=False))

    def residual(count: int) -> nn.Module:
        return layers(*[deep() for _ in range(count)])

    body = [conv(), conv(), deep(), residual(4), deep(), residual(6), deep(), residual(2)]
    tail = layers(conv(prelu=False), nn.Flatten(), nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    parts = {"layers": nn.ModuleList(body), "conv_sep": conv(), "features": tail}
    return list(nn.ModuleDict(parts).state_dict())


def iresnet_names(blocks: tuple[int, ...]) -> list[str]:
    """The names that insightface's IResNet saves, in its order."""

    def norm(name: str) -> list[str]:
        kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{name}.{kind}" for kind in kinds]

    names = ["conv1.weight", *norm("bn1"), "prelu.weight"]
    for stage, count in enumerate(blocks, 1):
        for index in range(count):
            at = f"layer{stage}.{index}"
            names += [*norm(f"{at}.bn1"), f"{at}.conv1.weight", *norm(f"{at}.bn2")]
            names += [f"{at}.prelu.weight", f"{at}.conv2.weight", *norm(f"{at}.bn3")]
            if index == 0:
                names += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return [*names, *norm("bn2"), "fc.weight", "fc.bias", *norm("features")]


def foreign(name: str, names: list[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of ours with random weights, and its weights under those names."""
    network = build_network(name, 48).eval()
    ours = network.state_dict()
    for value in ours.values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    assert len(names) == len(ours)
    return network, dict(zip(names, ours.values(), strict=True))


LAYOUTS = {
    "mobilefacenet": adadistill_names,
    "mbf": mbf_names,
    "iresnet18": lambda: iresnet_names((2, 2, 2, 2)),
}


def test_the_official_mobilefacenet_has_331_names() -> None:
    assert len(adadistill_names()) == 331


@pytest.mark.parametrize(
    ("name", "wrap"),
    [("mobilefacenet", ""), ("mobilefacenet", "module."), ("mbf", ""), ("iresnet18", "module.")],
)
def test_other_trainers_checkpoints_load(name: str, wrap: str, tmp_path: Path) -> None:
    network, state = foreign(name, LAYOUTS[name]())
    saved = {wrap + key: value for key, value in state.items()}
    torch.save({"state_dict": saved, "epoch": 3} if wrap else saved, tmp_path / "backbone.pth")
    loaded, network_name, dim = load_network(tmp_path / "backbone.pth")
    assert (network_name, dim) == (name, 48)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("mbf", "model."),
        ("mobilefacenet", "net."),
        ("mbf", "model._orig_mod."),
        ("mobilefacenet", "backbone._orig_mod."),
        ("mbf", "features.module."),
        ("mobilefacenet", "module.model.net.backbone."),
    ],
)
def test_any_chain_of_prefixes_is_peeled_off(name: str, wrap: str, tmp_path: Path) -> None:
    """Lightning, torch.compile, CVLface, MagFace; a head beside the network does not disturb."""
    network, state = foreign(name, LAYOUTS[name]())
    saved = {wrap + key: value for key, value in state.items()}
    saved["head.kernel"] = torch.ones(3)
    torch.save({"state_dict": saved, "optimizer": {"state": {}}}, tmp_path / "last.ckpt")
    loaded, network_name, _ = load_network(tmp_path / "last.ckpt")
    assert network_name == name
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("inside", [False, True])
def test_raw_and_averaged_weights_are_not_chosen_between(inside: bool, tmp_path: Path) -> None:
    _, raw = foreign("mbf", mbf_names())
    network, averaged = foreign("mbf", mbf_names())
    if inside:
        parts = {"model.": raw, "ema.": averaged}
        content = {"state_dict": {p + k: v for p, s in parts.items() for k, v in s.items()}}
    else:
        content = {"state_dict": raw, "state_dict_ema": averaged}
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="holds 2 sets of weights") as caught:
        load_network(tmp_path / "last.ckpt")
    assert "--weights" in str(caught.value.hint)
    assert "ema" in str(caught.value.hint)
    loaded, _, _ = load_network(tmp_path / "last.ckpt", weights="ema")
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_mobilefacenets_whose_head_is_not_nested(tmp_path: Path) -> None:
    """TreB1eN's and FaceX-Zoo's, with a scale and shift behind the embedding."""
    network = build_network("mobilefacenet-affine", 48).eval()
    names = [name.removeprefix("output_layer.") for name in adadistill_names()]
    place = names.index("bn.running_mean")
    names[place:place] = ["bn.weight", "bn.bias"]
    ours = list(network.state_dict().values())
    assert len(names) == len(ours)
    torch.save(dict(zip(names, ours, strict=True)), tmp_path / "m.pth")
    loaded, name, _ = load_network(tmp_path / "m.pth")
    assert name == "mobilefacenet-affine"
    face = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(loaded(face), network(face))


class GatedBlock(nn.Module):
    """A block as AdaFace's and face.evoLVe's code builds it: names and order of its layers."""

    def __init__(self, inp: int, out: int, stride: int, middle_norm: bool, gated: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inp != out:
            convolution = nn.Conv2d(inp, out, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(convolution, nn.BatchNorm2d(out))
        layers = [nn.BatchNorm2d(inp), nn.Conv2d(inp, out, 3, 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(out)] if middle_norm else []
        layers += [nn.PReLU(out), nn.Conv2d(out, out, 3, stride, 1, bias=False)]
        self.res_layer = nn.Sequential(*layers, nn.BatchNorm2d(out))
        if gated:
            gate = {"fc1": nn.Conv2d(out, out // 16, 1, bias=False)}
            gate["fc2"] = nn.Conv2d(out // 16, out, 1, bias=False)
            self.res_layer.append(nn.ModuleDict(gate))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.res_layer:
            if isinstance(layer, nn.ModuleDict):
                pooled = y.mean((2, 3), keepdim=True)
                y = y * layer["fc2"](layer["fc1"](pooled).relu()).sigmoid()
            else:
                y = layer(y)
        out: Tensor = y + self.shortcut_layer(x)
        return out


def ir_network(blocks: tuple[int, ...], form: str, widths: tuple[int, ...]) -> nn.Module:
    adaface = form == "adaface-ir"
    body, inp = [], widths[0]
    for count, width in zip(blocks, widths, strict=True):
        for index in range(count):
            stride = 2 if index == 0 else 1
            body.append(GatedBlock(inp, width, stride, adaface, form == "evolve-irse"))
            inp = width
    parts = {
        "input_layer": nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.PReLU(widths[0]),
        ),
        "body": nn.Sequential(*body),
        "output_layer": nn.Sequential(
            nn.BatchNorm2d(inp),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(inp * 49, 24),
            nn.BatchNorm1d(24, affine=not adaface),
        ),
    }
    return nn.Sequential(OrderedDict(parts))


@pytest.mark.parametrize("form", ["adaface-ir", "evolve-ir", "evolve-irse"])
def test_ir_networks_of_adaface_and_evolve_compute_the_same(form: str) -> None:
    widths = (16, 16, 16, 32)
    theirs = ir_network((3, 4, 14, 3), form, widths).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    converted = to_our_names(theirs.state_dict())
    assert converted is not None
    assert converted[0] == f"{form}50"
    kind, gated = form.partition("-")[0], form == "evolve-irse"
    ours = IResNet((3, 4, 14, 3), 24, widths, form=kind, gated=gated).eval()
    ours.load_state_dict(converted[1])
    face = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(ours(face), theirs(face))


def test_ir_networks_of_every_depth_have_the_published_weights() -> None:
    """Counts of parameters: AdaFace's IR-18, -50 and -101, face.evoLVe's IR-50 and IR-SE-50."""
    depths = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
    counts = {"adaface-ir18": 24_020_352, "adaface-ir50": 43_585_600, "adaface-ir100": 65_150_912}
    counts |= {"evolve-ir50": 43_574_976, "evolve-irse50": 43_797_696}
    for name in [name for name in NETWORKS if name.startswith(("adaface", "evolve"))]:
        form, depth = name.rstrip("0123456789"), int(re.sub(r"\D", "", name))
        with torch.device("meta"):
            theirs = ir_network(depths[depth], form, (64, 128, 256, 512))
            ours = build_network(name)
        converted = to_our_names(theirs.state_dict())
        assert converted is not None
        assert converted[0] == name
        assert set(converted[1]) == set(ours.state_dict())
        assert sum(p.numel() for p in ours.parameters()) == counts.get(
            name, sum(p.numel() for p in ours.parameters())
        )


def test_facenet_pytorch_is_known_by_its_names(tmp_path: Path) -> None:
    """27,910,327 parameters are published for VGGFace2's 8,631 people, whose head is left out."""
    with torch.device("meta"):
        network = build_network("facenet")
    classes = 8_631 * 512 + 8_631
    assert sum(p.numel() for p in network.parameters()) + classes == 27_910_327
    names = [*network.state_dict(), "logits.weight", "logits.bias"]
    for name in ("repeat_2.9.branch1.2.bn.running_var", "mixed_7a.branch2.0.conv.weight"):
        assert name in names
    converted = to_our_names(dict.fromkeys(names, 0))
    assert converted is not None
    assert converted[0] == "facenet"
    assert set(converted[1]) == set(network.state_dict())


def test_edgefaces_are_told_apart() -> None:
    """Without timm: by the width of the stem, the blocks, and linear layers of low rank."""
    sizes = {"edgeface_base": (80, 9), "edgeface_s_gamma_05": (48, 9)}
    sizes |= {"edgeface_xs_gamma_06": (32, 9), "edgeface_xxs": (24, 6)}
    for name, (width, blocks) in sizes.items():
        state = {"stem.0.weight": torch.zeros(width, 3, 4, 4)}
        state |= {"stages.3.blocks.0.conv_dw.weight": torch.zeros(1)}
        state |= {f"stages.2.blocks.{i}.gamma": torch.zeros(1) for i in range(blocks)}
        if "gamma" in name:
            state["stages.0.blocks.0.mlp.fc1.linear1.weight"] = torch.zeros(1)
        assert edgeface_of(state) == name
    assert edgeface_of({"stem.0.weight": torch.zeros(96, 3, 4, 4)}) is None


def test_edgeface_is_timms_edgenext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published sizes: 1.77 M parameters for XS with 0.6 of the rank (arXiv 2307.01838, table 1).

    timm wants torchvision when it is imported, and computes nothing with it here; one that is built for
    another torch fails as it registers its operators, which is left out.
    """
    register = torch.library.register_fake

    def without_torchvision(name: object, *args: object, **options: object) -> object:
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **options)

    monkeypatch.setattr(torch.library, "register_fake", without_torchvision)
    try:
        import timm  # noqa: F401
    except Exception as error:
        with pytest.raises(MachineError, match="timm cannot be imported") as caught:
            build_network("edgeface_xs_gamma_06")
        assert "timm>=1.0" in str(caught.value.hint)
        pytest.skip(f"timm cannot be imported: {error}")
    network = build_network("edgeface_xs_gamma_06")
    assert sum(p.numel() for p in network.parameters()) == 1_770_492
    saved = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save(saved, tmp_path / "edgeface.pt")
    loaded, name, dim = load_network(tmp_path / "edgeface.pt")
    assert (name, dim) == ("edgeface_xs_gamma_06", 512)
    face = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(loaded(face), network.eval()(face))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("r50", "iresnet50"),
        ("R100", "iresnet100"),
        ("ir_50", "adaface-ir50"),
        ("IR_101", "adaface-ir100"),
        ("ir_se_50", "evolve-irse50"),
        ("mbf", "mbf"),
        ("InceptionResnetV1", "facenet"),
        ("edgeface_xs_gamma_06", "edgeface_xs_gamma_06"),
        ("nothing like it", "nothing like it"),
    ],
)
def test_names_in_use_are_understood(theirs: str, ours: str) -> None:
    assert network_name(theirs) == ours


def test_an_unknown_layout_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    names = iresnet_names((2, 2, 2, 2))
    state = {name.replace("conv1", "first"): torch.ones(1) for name in names}
    torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="layout is not known; the nearest is insight") as caught:
        load_network(tmp_path / "x.pth")
    fitting = sum("conv1" not in name for name in names)
    assert f"IResNet-18, with {fitting} of its {len(names)} names" in str(caught.value)
    assert "--arch FILE.py:FUNCTION" in str(caught.value.hint)
    torch.save({"blocks.0.attn.qkv.weight": torch.ones(2), "cls": torch.ones(1)}, tmp_path / "v.pt")
    with pytest.raises(UsageError, match="none is near to names such as blocks.0.attn.qkv.weight"):
        load_network(tmp_path / "v.pt")


def test_deep_iresnets_are_told_apart() -> None:
    deep = {"iresnet34": (3, 4, 6, 3), "iresnet50": (3, 4, 14, 3), "iresnet100": (3, 13, 30, 3)}
    deep["iresnet200"] = (6, 26, 60, 6)
    for name, blocks in deep.items():
        with torch.device("meta"):
            ours = build_network(name).state_dict()
        converted = to_our_names(dict.fromkeys(iresnet_names(blocks), 0))
        assert converted is not None
        assert converted[0] == name
        assert set(converted[1]) == set(ours)


@pytest.mark.parametrize("change", ["missing", "left over", "shape", "nan"])
def test_weights_that_do_not_all_match_are_refused(change: str, tmp_path: Path) -> None:
    _, state = foreign("mobilefacenet", adadistill_names())
    if change == "missing":
        del state["conv_4.model.5.conv_dw.bn.weight"]
    elif change == "left over":
        state["conv_4.model.6.conv.conv.weight"] = torch.ones(1)
    elif change == "shape":
        state["conv1.conv.weight"] = torch.ones(32, 3, 3, 3)
    else:
        state["conv1.bn.bias"][0] = torch.nan
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(ModelError):
        load_network(tmp_path / "backbone.pth")


def test_a_nameless_checkpoint_needs_its_network_named(tmp_path: Path) -> None:
    network = build_network("mobilefacenet-0.25", 32)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(UsageError, match="which network"):
        load_network(tmp_path / "bare.pt")
    assert load_network(tmp_path / "bare.pt", "mobilefacenet-0.25")[1:] == (
        "mobilefacenet-0.25",
        32,
    )
    save_network(tmp_path / "model.pt", network.state_dict(), "mobilefacenet-0.25", 32)
    assert load_network(tmp_path / "model.pt")[1:] == ("mobilefacenet-0.25", 32)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never run",))


def test_files_that_hold_code_or_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": _Runs()}, path)
    with pytest.raises(ModelError, match="refused"):
        load_network(path)
    assert capsys.readouterr().out == ""
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="damaged"):
        load_network(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ModelError, match="no tensors"):
        load_network(path)
    with pytest.raises(ModelError, match="no checkpoint"):
        load_network(tmp_path / "nowhere.pt")


def sparse(weight: Tensor) -> Tensor:
    return weight.to_sparse()


def meta(weight: Tensor) -> Tensor:
    return weight.to("meta")


def quantized(weight: Tensor) -> Tensor:
    return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


def complex_numbers(weight: Tensor) -> Tensor:
    return weight.to(torch.complex64)


def whole_numbers(weight: Tensor) -> Tensor:
    return weight.to(torch.int32)


def expanded(weight: Tensor) -> Tensor:
    return torch.zeros(1).expand(weight.shape)


KINDS = [sparse, meta, quantized, complex_numbers, whole_numbers, expanded]


@pytest.mark.filterwarnings("ignore")  # torch announces the end of quantized tensors
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_weights_that_are_no_dense_floats_are_refused(
    kind: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    state = build_network("iresnet-tiny", 16).state_dict()
    save_network(tmp_path / "x.pt", state, "iresnet-tiny", 16)
    load_network(tmp_path / "x.pt")
    state["embed.weight"] = kind(state["embed.weight"])
    save_network(tmp_path / "x.pt", state, "iresnet-tiny", 16)
    with pytest.raises(ModelError):
        load_network(tmp_path / "x.pt")


def test_an_embedding_of_two_billion_rows_is_refused(tmp_path: Path) -> None:
    state = build_network("iresnet-tiny", 16).state_dict()
    state["embed.weight"] = torch.zeros(1).expand(2**31, state["embed.weight"].shape[1])
    save_network(tmp_path / "x.pt", state, "iresnet-tiny", 16)
    with pytest.raises(ModelError, match="2,147,483,648 numbers"):
        load_network(tmp_path / "x.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would unpack a few kilobytes to any size."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ModelError, match="compressed archive"):
        load_network(tmp_path / "y.pt", "iresnet-tiny")
    torch.save({"a": torch.zeros(1 << 19)}, tmp_path / "z.pt")
    monkeypatch.setenv("FR_EDGE_MAX_WEIGHTS_MB", "1")
    with pytest.raises(ModelError, match="larger than 1 MB"):
        load_network(tmp_path / "z.pt", "iresnet-tiny")
