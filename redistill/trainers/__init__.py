"""Trainers: distil a teacher into its student, on Hugging Face Accelerate.

classifier       the command: one YAML an experiment, from data to the delivered student
denoiser         the command, for denoisers of diffusion
comparison       the command: many methods, plans and seeds as one table
contest          a comparison's rows, runs and scores; accuracy is the classifiers', evaluation.judging the denoisers'
settings, config what can be set, and how files are read
loop             time, processes, checkpoints; knows nothing of what it trains
task             what the loop asks of a task; classification is the classifier's, denoising the denoiser's
experiment       what a kind of experiment is; command, running, teachers, students, joining are common to all kinds
int8             the stage that rounds the trained student, and trains it rounded
views, pairing   how a task sees student and teacher: as graphs whose features are outputs
distillation     the methods, one a file
"""
