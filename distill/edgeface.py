"""EdgeFace (arXiv 2307.01838): timm's EdgeNeXt, with its linear layers split into two of low rank.

timm is an optional extra. It imports torchvision, which must fit the installed torch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import MachineError

EDGEFACES = {  # names of the published checkpoints -> timm's network, share of the full rank
    "edgeface_base": ("edgenext_base", None),
    "edgeface_s_gamma_05": ("edgenext_small", 0.5),
    "edgeface_xs_gamma_06": ("edgenext_x_small", 0.6),
    "edgeface_xxs": ("edgenext_xx_small", None),
}


class LowRankLinear(nn.Module):
    """Two linear layers in the place of one; only the second has a bias.

    Args:
        layer: The layer that is replaced.
        ratio: Share of its full rank.
    """

    def __init__(self, layer: nn.Linear, ratio: float) -> None:
        super().__init__()
        rank = max(2, int(min(layer.in_features, layer.out_features) * ratio))
        self.linear1 = nn.Linear(layer.in_features, rank, bias=False)
        self.linear2 = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(self.linear1(x))
        return out


def build_edgeface(name: str, dim: int = 512) -> nn.Module:
    """An EdgeFace with random weights, under the names of the published checkpoints.

    Args:
        name: A key of `EDGEFACES`.
        dim: Embedding size.

    Returns:
        `(N, 3, 112, 112) -> (N, dim)`.

    Raises:
        MachineError: timm cannot be imported.
    """
    try:
        import timm
    except Exception as error:  # a torchvision for another torch raises RuntimeError
        raise MachineError(
            f"{name} is timm's network, and timm cannot be imported: {error}",
            "pip install 'fr-edge[edgeface]', with the torchvision of the same release and build as"
            f" torch {torch.__version__}; or export it elsewhere by torch.onnx.export",
        ) from error
    kind, ratio = EDGEFACES[name]
    network: nn.Module = timm.create_model(kind, pretrained=False, num_classes=dim)
    if ratio is not None:
        _split_linear_layers(network, ratio)
    return network


def edgeface_of(state: Mapping[str, object]) -> str | None:
    """Tell which EdgeFace weights belong to.

    Args:
        state: Name -> tensor.

    Returns:
        A key of `EDGEFACES`; None where they are of none.
    """
    stem = state.get("stem.0.weight")
    if not isinstance(stem, Tensor) or "stages.3.blocks.0.conv_dw.weight" not in state:
        return None
    split = any(name.endswith(".linear1.weight") for name in state)
    blocks = sum(name.startswith("stages.2.blocks.") and name.endswith(".gamma") for name in state)
    # EdgeNeXt's table 9: width of the stem, blocks of the third stage (arXiv 2206.10589).
    known = {
        (80, 9, False): "edgeface_base",
        (48, 9, True): "edgeface_s_gamma_05",
        (32, 9, True): "edgeface_xs_gamma_06",
        (24, 6, False): "edgeface_xxs",
    }
    return known.get((int(stem.shape[0]), blocks, split))


def _split_linear_layers(module: nn.Module, ratio: float) -> None:
    """Replace all linear layers but the head, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and "head" not in name:
            setattr(module, name, LowRankLinear(child, ratio))
        else:
            _split_linear_layers(child, ratio)
