"""What is made of verdicts on many examples: a file, a table, a row of a report, a line on the screen."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import report, training
from cure_jax.certification import DatasetAttack, DatasetCertificate
from cure_jax.models import Fitted
from cure_jax.verification.dataset import DatasetVerdicts
from cure_jax.verification.verdict import Status, Verdict

_IMAGES = np.array([[0.9, 0.1], [0.6, 0.5], [0.2, 0.7]], np.float32)
_LABELS = np.array([0, 0, 1])


def _network(x: jax.Array) -> jax.Array:
    return x


@pytest.fixture(scope="module")
def certificate() -> DatasetCertificate:
    regions = {**training.make_regions({"linf": 0.1}), "l2": lambda x: cj.l2_ball(x, 0.1 + 0.1 * x[0])}
    return cj.certify_dataset(_network, _IMAGES, _LABELS, regions, method="ibp", batch_size=2)


def test_radii_are_kept_where_all_examples_have_the_same(certificate: DatasetCertificate) -> None:
    assert certificate.radii == {"linf": 0.1}
    own = cj.certify_dataset(
        _network,
        _IMAGES,
        _LABELS,
        {"linf": cj.linf_ball, "l2": lambda x: cj.box(x, x)},
        radii={"linf": np.full(3, 0.1)},
        method="ibp",
    )
    assert own.radii == {"linf": 0.1}


def test_a_certificate_comes_back_from_its_file(certificate: DatasetCertificate, tmp_path: Path) -> None:
    unfinished = {"linf": np.array([True, False, False])}
    whole = dataclasses.replace(certificate, unfinished=unfinished)
    whole.save(tmp_path / "here.npz")
    loaded = DatasetCertificate.load(tmp_path / "here.npz")
    assert (loaded.method, loaded.radii) == ("ibp", {"linf": 0.1})
    for field in ("verified", "margin", "unfinished"):
        saved, read = getattr(whole, field), getattr(loaded, field)
        assert list(saved) == list(read)
        for norm, array in saved.items():
            np.testing.assert_array_equal(array, read[norm])
            assert array.dtype == read[norm].dtype
    np.testing.assert_array_equal(loaded.correct, certificate.correct)
    assert [path.name for path in tmp_path.iterdir()] == ["here.npz"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "short.npz", correct=np.ones(3, bool), **{"verified.l2": np.ones(2, bool)})
    for name in ("text", "other", "short"):
        with pytest.raises(ValueError, match=rf"{name}\.npz .*expected .*DatasetCertificate\.save"):
            DatasetCertificate.load(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        DatasetCertificate.load(tmp_path / "none.npz")


def test_a_table_has_the_shares_and_fits_a_screen(certificate: DatasetCertificate) -> None:
    lines = certificate.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["correct", "linf", "l2", "union"]
    shares = (certificate.correct, certificate.verified["linf"], certificate.verified["l2"], certificate.union)
    assert [f"{100 * share.mean():.1f}%" in line for share, line in zip(shares, lines[1:], strict=True)] == [True] * 4
    assert repr(certificate).splitlines() == ["DatasetCertificate of 3 examples by ibp", *lines]


def test_certificates_go_straight_into_reports(certificate: DatasetCertificate) -> None:
    others = dataclasses.replace(certificate, verified={norm: np.zeros(3, bool) for norm in certificate.verified})
    table = report.markdown({"mine": certificate, "other": others})
    assert "certified ℓ∞ (0.1)" in table
    assert "\n| mine | 1 | " in table
    assert table == report.markdown([certificate.summary("mine"), others.summary("other")])
    assert report.summarize([certificate])[0].label == "ibp"
    assert report.certified_subsets(certificate) == report.certified_subsets(certificate.arrays())
    differences = report.margin_differences(certificate)
    np.testing.assert_allclose(differences, certificate.margin["linf"] - certificate.margin["l2"], atol=1e-6)


@pytest.mark.parametrize("wrong", ["one", "summary", "text"])
def test_one_result_alone_and_other_things_are_refused(certificate: DatasetCertificate, wrong: str) -> None:
    given = {"one": certificate, "summary": certificate.summary(), "text": ["a path"]}[wrong]
    with pytest.raises(ValueError, match=r"expected several|expected the content of a certify\.json"):
        report.contents(given)


def test_what_is_shown_on_the_screen_is_short() -> None:
    x = jnp.array([0.8, 0.3])
    one = cj.certify(_network, x, 0, cj.linf_ball(x, 0.1), "ibp")
    assert repr(one) == "Certificate(verified, margin 0.3)"
    union = cj.certify_union(_network, x, 0, {"linf": cj.linf_ball(x, 0.1), "l2": cj.linf_ball(x, 0.3)}, "ibp")
    assert repr(union) == "UnionCertificate(not verified; linf: verified, margin 0.3; l2: not verified, margin -0.1)"
    many = jax.vmap(lambda x: cj.certify(_network, x, 0, cj.linf_ball(x, 0.1), "ibp"))(jnp.stack([x, x[::-1]]))
    assert repr(many) == "Certificate(verified 1 of 2, margins -0.7 to 0.3)"
    shown = []
    jax.jit(lambda x: shown.append(repr(cj.certify(_network, x, 0, cj.linf_ball(x, 0.1), "ibp"))))(x)
    assert shown[0].startswith("Certificate(verified=")
    verdicts = DatasetVerdicts({"l2": np.array(["verified", "timeout", "verified"])}, {}, {}, {})
    assert repr(verdicts) == "DatasetVerdicts of 3 examples: l2 1 timeout, 2 verified; union 2 verified"
    attack = DatasetAttack({"linf": np.array([True, True, False])})
    assert repr(attack) == "DatasetAttack of 3 examples; survived: linf 66.7%, union 66.7%"
    verdict = Verdict(Status.FALSIFIED, np.zeros(784), -0.25, 7, 1.25, "an attack")
    assert repr(verdict) == "Verdict(FALSIFIED, margin -0.25, witness of shape (784,), 7 domains, 1.2 s: an attack)"


def test_a_trained_network_is_shown_in_a_line() -> None:
    model, config = nn.Dense(3), training.default_config()
    fitted = Fitted(model, config, model.init(jax.random.key(0), jnp.zeros((1, 4))), (4,))
    assert repr(fitted) == "Fitted(Dense, 15 parameters, inputs (4,), l2 0.4, linf 0.1)"
    assert "Dense" in repr(dataclasses.replace(fitted, config=None))
