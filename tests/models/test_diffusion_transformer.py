"""The diffusion transformer: where its tokens stand, and how it begins."""

import torch
from diffusers import DiTTransformer2DModel

from fedmedgen.models.diffusion_transformer import DiffusionTransformer


def transformer() -> DiffusionTransformer:
    torch.manual_seed(0)
    return DiffusionTransformer(in_channels=4, num_class_embeds=3, width=16, depth=2, heads=2)


def run(model: DiffusionTransformer, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model(x, torch.ones(len(x)), torch.zeros(len(x)).long())[0]
    return out


def test_every_block_begins_as_the_identity() -> None:
    model = transformer()
    tokens = torch.randn(2, 6, 16)
    for block in model.blocks:
        assert torch.equal(block(tokens, torch.randn(2, 16)), tokens)


def test_a_place_matters_in_both_directions() -> None:
    out = run(transformer(), torch.zeros(1, 4, 3, 5))
    assert not torch.allclose(out[..., 0, 0], out[..., 0, 1])
    assert not torch.allclose(out[..., 0, 0], out[..., 1, 0])


def test_once_the_gates_are_open_every_token_sees_every_other() -> None:
    model = transformer()
    for block in model.blocks:
        torch.nn.init.normal_(block.norm1.linear.weight)
    x = torch.randn(1, 4, 3, 5)
    nudged = x.clone()
    nudged[..., 2, 4] += 1
    assert not torch.allclose(run(model, x)[..., 0, 0], run(model, nudged)[..., 0, 0], atol=1e-6)


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, x = transformer(), torch.randn(3, 4, 3, 5)
    torch.testing.assert_close(run(model, x)[1:2], run(model, x[1:2]))


def test_the_transformer_of_diffusers_drops_labels_by_itself_in_training() -> None:
    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=1,
                                   sample_size=8, num_embeds_ada_norm=3, norm_num_groups=1).train()  # fmt: skip
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x, timesteps, labels = torch.randn(200, 1, 8, 8), torch.ones(200).long(), torch.zeros(200).long()
    first, second = (theirs(x, timesteps, labels).sample for _ in range(2))
    assert not torch.equal(first, second)
