"""The model card says what a prior went through, the stages before it included."""

from mrigsure.card import model_card


def _training(updates, rounds, start=None):
    archive = {
        "scans": 7, "files": 3, "validation_scans": 2, "noise_std": [0.01, 0.02], "acceleration": [2.0, 4.0],
        "coils": [4, 8], "matrix": [[64, 64]], "blind_share": 0.0, "smallest_eigenvalue": 0.1,
    }  # fmt: skip
    settings = {
        "objective": "heldout", "input": "solve", "start": "network", "batch_size": 4, "accumulate": 2, "seed": 5,
        "init_from": start and "earlier",
    }  # fmt: skip
    history = [{"round": rounds, "residual": 0.2, "z2": 1.0}]
    made = {"version": "1", "archive": archive, "settings": settings, "history": history}
    return made | {"updates": updates, "rounds": rounds, "start": start}


def test_a_prior_from_nothing_tells_of_itself_alone():
    card = model_card("prior", _training(900, 2))
    assert "- 900 updates of 8 scans or draws, 2 refinement rounds; seed 5\n" in card
    assert "with all that went before" not in card and "started from nothing" in card


def test_the_stages_before_are_summed():
    card = model_card("prior", _training(100, 1, _training(30, 0, _training(900, 2))))
    assert "started from the prior earlier (30 updates, 0 rounds, on 64 x 64)" in card
    assert "with all that went before 1030 updates, 3 rounds; seed 5" in card


def test_a_prior_whose_spread_alone_is_new_says_so():
    card = model_card("prior", _training(0, 0, _training(900, 2)))
    assert "0 updates of" not in card and "no updates: the spread of its draws was calibrated" in card
    assert "with all that went before 900 updates, 2 rounds" in card
