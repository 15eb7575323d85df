"""Trainers: distil a teacher into its student, on Hugging Face Accelerate.

classifier       the command: one YAML an experiment, from data to the delivered student
denoiser         the command, for denoisers of diffusion
loop             time, processes, checkpoints; knows nothing of what it trains
task             what the loop asks of a task; classification is the classifier's, denoising the denoiser's
experiment       what a kind of experiment is; command, running, teachers, students, folder are common to all kinds
int8             the stage that rounds the trained student, and trains it rounded

What can be set is in ``redistill.config``, images come from ``redistill.data``, and student and teacher are compared by
``redistill.Distiller``, here as in a loop of one's own.
"""
