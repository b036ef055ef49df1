import pytest
import torch

from mbgen_hf.item_ids.quantized_autoencoder import MovingCodebook, QuantizedAutoEncoder, train_autoencoder


@pytest.fixture
def hills():
    """Eight separate groups of features."""
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(8, 16, generator=generator)
    kind = torch.arange(8).repeat(60)
    features = centers[kind] + 0.3 * torch.randn(480, 16, generator=generator)
    return (features - features.mean(0)) / features.std(0), kind


def test_codebook_holds_running_averages_of_counts_and_sums():
    codebook = MovingCodebook(2, 2, decay=0.5)
    codebook.start(torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 10.0]]), seed=0)
    low = int(codebook.counts.argmax())
    assert codebook.codes[low].tolist() == [0, 1] and codebook.counts[low] == 2
    vectors = torch.tensor([[4.0, 4.0], [2.0, 0.0]])
    codebook.follow(vectors, torch.full((2,), low))
    # (2 + 2) / 2 members, sums ((0, 2) + (6, 4)) / 2.
    assert codebook.counts[low] == 2 and codebook.counts[1 - low] == 0.5
    torch.testing.assert_close(codebook.codes[low], torch.tensor([1.5, 1.5]))
    torch.testing.assert_close(codebook.codes[1 - low], torch.tensor([10.0, 10.0]))


def test_idle_codes_move_to_vectors():
    codebook = MovingCodebook(3, 1)
    codebook.start(torch.tensor([[0.0], [1.0], [2.0]]), seed=0)
    codebook.counts[:] = torch.tensor([100.0, 0.01, 100.0])
    before = codebook.codes.clone()
    codebook.revive(torch.tensor([[7.0]]), torch.Generator().manual_seed(0))
    assert codebook.codes[1] == 7 and torch.equal(codebook.codes[[0, 2]], before[[0, 2]])


def test_loss_is_reconstruction_and_weighted_distance_to_the_codes():
    torch.manual_seed(0)
    network = QuantizedAutoEncoder(6, (5,), 3, [4, 4])
    features = torch.randn(20, 6)
    network.start_codebooks(features, seed=0)
    latent = network.encoder(features)
    rest, distance = latent, 0.0
    for codebook in network.codebooks:
        nearest = torch.cdist(rest, codebook.codes).argmin(1)
        distance = distance + (rest - codebook.codes[nearest]).square().sum(1).mean()
        rest = rest - codebook.codes[nearest]
    reconstruction = (network.decoder(latent - rest) - features).square().sum(1).mean()
    for beta in (0.0, 0.25):
        torch.testing.assert_close(network.loss(features, beta), reconstruction + beta * distance)
    # The gradient of the reconstruction passes the quantisation straight through.
    network.loss(features, 0.0).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.encoder.parameters())
    assert all(not buffer.requires_grad for buffer in network.buffers())


def test_codes_keep_the_groups_apart(hills):
    features, kind = hills
    network, report = train_autoencoder(features, (32,), 8, [16], learning_rate=0.03, max_epochs=60, seed=1)
    with torch.no_grad():
        codes = network.codebooks[0].nearest(network.encoder(features))
    table = torch.zeros(8, 16).index_put_((kind, codes), torch.ones(len(kind)), accumulate=True)
    assert table.amax(0).sum() / len(kind) > 0.95, "a code belongs to one group"
    assert report["validation_loss"] < 0.2 * 16


def test_training_stops_on_a_plateau_and_repeats(hills):
    features, _ = hills
    (one, first), (two, second) = (
        train_autoencoder(features, (16,), 4, [8], learning_rate=0.03, seed=3, patience=3) for _ in range(2)
    )
    assert first == second and first["epochs"] < 300
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    state = torch.random.get_rng_state()
    train_autoencoder(features, (16,), 4, [8], seed=3, max_epochs=1)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random state is left alone"
