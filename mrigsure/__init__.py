"""mrigsure: MRI reconstruction with diffusion priors that never saw a clean scan."""

__version__ = "0.1.0"
