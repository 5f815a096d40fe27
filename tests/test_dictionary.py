import numpy as np
import pytest
import torch
from helpers import make, untrained_detector
from sklearn.linear_model import orthogonal_mp_gram
from threadpoolctl import threadpool_limits

from texture_ad.errors import UserError
from texture_ad.methods.registry import load
from texture_ad.models.dictionary import initial_atoms, update_atoms
from texture_ad.models.sparse import omp_spams, own_threads, residuals, spams_blas


@pytest.fixture(scope="module")
def features():
    """Sparse combinations of hidden atoms, with noise."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.nn.functional.normalize(torch.randn(40, 20, generator=g), dim=1)
    codes = torch.randn(6000, 40, generator=g) * (torch.rand(6000, 40, generator=g) < 0.08)
    return codes @ hidden + 0.02 * torch.randn(6000, 20, generator=g)


def stream(features, parts, passes=1, iterations=20):
    atoms = initial_atoms(features, 40, 0)
    statistics = None
    seen = []
    for _ in range(passes):
        for part in features.chunk(parts):
            atoms, statistics = update_atoms(part, atoms, statistics, 0.1, iterations, 256, 1)
            seen.append(atoms)
    return seen


def objective(features, atoms, lambda1=0.1):
    import spams

    x = np.asfortranarray(features.numpy().T)
    d = np.asfortranarray(atoms.numpy().T)
    codes = spams.lasso(x, D=d, lambda1=lambda1, numThreads=1)
    return float((0.5 * np.square(x - d @ codes).sum(0) + lambda1 * np.abs(codes.toarray()).sum(0)).mean())


def test_atoms_have_unit_norm(features):
    for atoms in stream(features, 6):
        assert torch.allclose(atoms.norm(dim=1), torch.ones(40), atol=1e-5)


def test_atoms_that_nothing_uses_keep_their_norm():
    g = torch.Generator().manual_seed(0)
    features = torch.zeros(500, 6)
    features[:, 0] = torch.rand(500, generator=g) + 0.5
    atoms = torch.nn.functional.normalize(torch.randn(12, 6, generator=g), dim=1)
    found, _ = update_atoms(features, atoms, None, 0.1, 50, 50, 1)
    assert torch.allclose(found.norm(dim=1), torch.ones(12), atol=1e-5)


def test_objective_decreases(features):
    values = [objective(features, a) for a in (initial_atoms(features, 40, 0), *stream(features, 6)[::2])]
    assert values[-1] < 0.9 * values[0]
    assert all(b < a * 1.02 for a, b in zip(values, values[1:], strict=False))


def test_streaming_is_as_good_as_one_shot(features):
    held_out = features[-1000:]
    streamed = objective(held_out, stream(features[:-1000], 5, passes=2)[-1])
    at_once = objective(held_out, stream(features[:-1000], 1, iterations=200)[-1])
    assert streamed < 1.05 * at_once


def test_fit_repeats_to_the_last_digit(features):
    assert torch.equal(stream(features, 6)[-1], stream(features, 6)[-1])


def test_codes_stay_sparse(features):
    codes = omp_spams(features[:500], stream(features, 3)[-1], 5, 0.0)
    assert np.diff(codes.indptr).max() <= 5


def by_torch(features, atoms, nonzeros, error=0.0):
    return residuals(features, atoms, atoms @ atoms.T, nonzeros, error)


def by_spams(features, atoms, nonzeros, error=0.0):
    """The same of SPAMS's codes."""
    difference = omp_spams(features, atoms, nonzeros, error).T @ atoms.numpy() - features.numpy()
    return torch.from_numpy(np.square(difference).sum(1))


CODERS = pytest.mark.parametrize("coder", [by_spams, by_torch])


def pursuit(y, d, nonzeros):
    """The textbook form: in each step try every atom with least squares and keep the best."""
    chosen = []
    for _ in range(nonzeros):
        errors = [
            np.square(y - d[:, chosen + [k]] @ np.linalg.lstsq(d[:, chosen + [k]], y, rcond=None)[0]).sum()
            for k in range(d.shape[1])
        ]
        chosen.append(int(np.argmin(errors)))
    return min(errors)


@CODERS
def test_residuals_against_least_squares(features, coder):
    atoms = stream(features, 3)[-1]
    y = features[:60]
    d = atoms.numpy().astype(np.float64).T
    expected = [pursuit(v.astype(np.float64), d, 4) for v in y.numpy()]
    assert np.allclose(coder(y, atoms, 4).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("nonzeros", [1, 8, 20])
def test_coders_agree(features, nonzeros):
    atoms = stream(features, 3)[-1]
    spams, torched = (coder(features[:500], atoms, nonzeros) for coder in (by_spams, by_torch))
    assert torch.allclose(spams, torched, atol=1e-3) and torched.min() >= 0


@pytest.mark.parametrize("count", [16, 32, 144])
def test_the_best_atom_is_found_among_any_number(count):
    """Of a multiple of 16, as the default's 512, it is looked for in another way."""
    y, atoms = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) for n in (300, count))
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    assert torch.allclose(by_torch(y, atoms, 5), by_spams(y, atoms, 5), rtol=1e-3, atol=1e-3)


def test_more_atoms_a_code_never_raise_the_error_and_beat_plain_omp(features):
    atoms = stream(features, 3)[-1]
    y = features[:300]
    errors = [by_torch(y, atoms, n).mean() for n in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    d = atoms.numpy().astype(np.float64)
    codes = orthogonal_mp_gram(d @ d.T, d @ y.numpy().T.astype(np.float64), n_nonzero_coefs=4)
    assert errors[2] <= np.square(y.numpy().T - d.T @ codes).sum(0).mean() + 1e-6


@CODERS
def test_error_bound_stops_early(features, coder):
    atoms = stream(features, 3)[-1]
    y = features[:200]
    loose = coder(y, atoms, 10, 0.05)
    tight = coder(y, atoms, 10, 0.0)
    assert (loose >= tight - 1e-5).all() and loose.mean() > tight.mean()


@CODERS
def test_a_code_grows_until_its_squared_error_is_within_the_bound(features, coder):
    atoms = stream(features, 3)[-1]
    y = features[:200]
    errors = torch.stack([y.square().sum(1), *(coder(y, atoms, n) for n in range(1, 9))])
    within = errors <= 0.05
    steps = torch.where(within.any(0), within.int().argmax(0), 8)
    assert len(steps.unique()) > 4
    assert torch.allclose(coder(y, atoms, 8, 0.05), errors.gather(0, steps[None])[0], atol=1e-4)


def test_atoms_begin_as_different_features(features):
    atoms = initial_atoms(features[:40], 40, 0)
    nearest = (atoms @ torch.nn.functional.normalize(features[:40], dim=1).T).argmax(1)
    assert sorted(nearest.tolist()) == list(range(40))


def test_a_later_call_remembers_what_earlier_ones_have_seen(features):
    first, second = features[:3000], features[3000:]
    atoms, statistics = update_atoms(first, initial_atoms(features, 40, 0), None, 0.1, 20, 256, 1)
    kept = statistics["A"].copy()
    remembering, later = update_atoms(second, atoms, statistics, 0.1, 20, 256, 1)
    forgetting, anew = update_atoms(second, atoms, None, 0.1, 20, 256, 1)
    assert not torch.equal(remembering, forgetting)
    assert later["iter"] > anew["iter"] and np.trace(later["A"]) > np.trace(kept) > 0


def test_fewer_signals_than_atoms():
    atoms = initial_atoms(torch.randn(5, 8), 20, 0)
    assert torch.allclose(atoms.norm(dim=1), torch.ones(20)) and torch.unique(atoms, dim=0).shape[0] == 20


def test_spams_leaves_torchs_threads_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        atoms = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
        by_spams(torch.randn(20, 4), atoms, 2)
        for threads in (-1, 2):
            update_atoms(torch.randn(50, 4), atoms, None, 0.1, 2, 10, threads)
            assert torch.get_num_threads() == 1
        for threads, used in ((-1, 1), (2, 2)):
            with own_threads(threads) as count:
                assert count == used
    finally:
        torch.set_num_threads(before)


def test_spams_blas_has_one_thread_while_spams_works():
    def threads() -> set[int]:
        return {library["num_threads"] for library in spams_blas().info()}

    with threadpool_limits(2, "blas"), own_threads(-1):
        assert threads() == {1}
    with threadpool_limits(2, "blas"):
        with own_threads(-1):
            pass
        assert threads() == {2}


@pytest.mark.parametrize(("coder", "tolerance"), [(by_spams, 1e-6), (by_torch, 1e-5)])
def test_small_errors_survive_float32(coder, tolerance):
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(30, 60, generator=g), dim=1)
    y = torch.randn(200, 2, generator=g) @ atoms[:2]
    y += 1e-3 * torch.randn(200, 60, generator=g)
    d = atoms.numpy().astype(np.float64).T
    expected = [pursuit(v, d, 2) for v in y.numpy().astype(np.float64)]
    assert max(expected) < 1e-4
    # Relative to the features' own energy, of which these errors are a ten thousandth.
    difference = np.abs(coder(y, atoms, 2).numpy() - expected) / y.square().sum(1).numpy()
    assert np.quantile(difference, 0.95) < tolerance


def test_new_atoms_bring_their_gram_matrix(tmp_path):
    detector = untrained_detector()
    dictionary = detector.dictionary
    assert torch.allclose(dictionary.gram, dictionary.atoms @ dictionary.atoms.T, atol=1e-6)
    detector.save(tmp_path / "detector.pt")
    assert torch.equal(load(tmp_path / "detector.pt").dictionary.gram, dictionary.gram)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"last": 3}, r"dictionary.last=3: expected an integer from 0 to 2"),
        ({"last": 1, "features": "latent"}, r"dictionary.last=1: expected 0 with features=latent"),
        ({"last": 1, "nonzeros": 5}, r"dictionary.nonzeros=5: expected an integer from 1 to 4"),
    ],
)
def test_settings_of_the_layers_are_checked(options, told):
    with pytest.raises(UserError, match=told):
        make("dictionary", channels=[6, 4], num_atoms=8, **options)


def test_a_code_may_have_as_many_atoms_as_a_vector_has_numbers():
    dictionary = make("dictionary", channels=[6, 4], num_atoms=8, last=1, nonzeros=4)
    assert dictionary.dim == 4 and make("dictionary", channels=[6, 4], num_atoms=8, last=2).dim == 10
