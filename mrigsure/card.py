"""The model card of a prior: what it is, what it saw, how it did, what it is not for."""


def model_card(name: str, training: dict) -> str:
    """Markdown from what training.json holds."""
    archive, settings = training["archive"], training["settings"]
    figures = [entry for entry in training["history"] if entry["round"] == training["rounds"]][-1]
    residual, z2, sizes = figures["residual"], figures["z2"], _sizes(training)
    low, high = archive["noise_std"]
    least, most = archive["acceleration"]
    return f"""# {name}

A diffusion prior for MR images, trained by mrigsure {training["version"]} {_seen(settings)}

- scans: {archive["scans"]} slices ({archive["files"]} files, {archive["validation_scans"]} slices held apart)
- acceleration {least:.2g} to {most:.2g}, {archive["coils"][0]} to {archive["coils"][1]} coils, matrix {sizes}
- noise per real part {low:.3g} to {high:.3g}, where the image's standard deviation is 0.5
- blind modes: {archive["blind_share"]:.2%}; smallest eigenvalue of E[A^H A] {archive["smallest_eigenvalue"]:.3g}
- objective {settings["objective"]}, input {settings["input"]}
- started from {_start(training)}
- {_work(training)}
- on lines held out of held-apart scans: residual of the mean {residual:.3g}, z^2 {z2:.3g} (1 is right)

Not for diagnosis. A posterior draw shows what is plausible under this prior and the measurement; structure that the
training scans did not contain may be drawn wrongly where the measurement does not decide.
"""


def _sizes(training):
    return ", ".join(f"{height} x {width}" for height, width in training["archive"]["matrix"])


def _start(training):
    settings = training["settings"]
    if settings["init_from"]:
        start = training["start"]
        made = f"{start['updates']} updates, {start['rounds']} rounds, on {_sizes(start)}"
        return f"the prior {settings['init_from']} ({made})"
    return "a fitted Gaussian" if settings["start"] == "gaussian" else "nothing"


def _work(training):
    settings, stages = training["settings"], list(_stages(training))
    if training["updates"]:
        batch = settings["batch_size"] * settings["accumulate"]
        work = f"{training['updates']} updates of {batch} scans or draws, {training['rounds']} refinement rounds"
    else:
        work = "no updates: the spread of its draws was calibrated, the network is that of the start"
    if len(stages) > 1:
        updates, rounds = (sum(stage[key] for stage in stages) for key in ("updates", "rounds"))
        work += f";\n  with all that went before {updates} updates, {rounds} rounds"
    return f"{work}; seed {settings['seed']}"


def _stages(training):
    """This training and those that it started from, one from the other."""
    while training:
        yield training
        training = training.get("start")


def _seen(settings):
    if settings["objective"] == "supervised":
        return "on CLEAN images: an oracle, for\ncomparison only."
    return "on undersampled, noisy k-space alone: no\nclean or fully sampled image was seen."
