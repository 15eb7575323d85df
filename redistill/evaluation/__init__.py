"""Evaluation of denoisers: how good their images are, and how near a student's are to its teacher's.

network, features   what sees the images: Inception from a file, or a classifier trained here on the same data
fidelity            FID, KID, IS, precision and recall by torch-fidelity, with the floor of real against real
real                the reference images, and the real ones that set the floor
similarity          SSIM and MSE of two images from the same noise
timesteps           the error of the predicted noise by timestep
subjects            what is evaluated: a folder of images, a student, a run or its checkpoint
evaluating          all of it together; `python -m redistill.evaluate` is the command
"""
