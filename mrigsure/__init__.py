"""mrigsure: MRI reconstruction with diffusion priors that never saw a clean scan."""

__version__ = "0.1.0"
__all__ = ["load_prior"]


def __getattr__(name):  # torch takes seconds to import, and the command line's help must not wait for it
    if name == "load_prior":
        from mrigsure.denoiser import load_prior

        return load_prior
    raise AttributeError(f"module 'mrigsure' has no attribute {name!r}")
