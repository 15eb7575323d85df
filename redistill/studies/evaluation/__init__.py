"""Evaluation of denoisers: how good their images are, and how near a student's are to its teacher's.

evaluating          all of it together; `redistill evaluate` is the command
judging             the same for the runs of a comparison, `redistill compare`
features, network   what sees the images: Inception from a file, or a classifier trained here on the same data
fidelity            FID, KID, IS, precision and recall by torch-fidelity
real                the reference images, and the real ones that set the floor
similarity          SSIM and MSE of two images from the same noise
timesteps           the error of the predicted noise by timestep
places, loading     what a path is, and the network that lies there
generation          images as a function of weights, sampler and seed
pictures, report    images from and to files; tables, JSON, grids
"""
