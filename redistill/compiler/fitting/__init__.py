"""Fitting: weights with which a student computes, layer by layer, what its teacher computes there.

A student inherits its teacher's weights, but on coarser grids they no longer compute the same thing: a 3x3 kernel now
spans several times as much of the image. Here every convolution and linear layer is solved for anew, in the order of
the data: given what the fitted student shows it, the weights that come nearest to the teacher's own output at that
layer, averaged down to the student's grid. Each is a ridge regression with a closed form, so there are no labels, no
gradients and no learning rate. What a regression cannot explain is missing from the variance of what it gives, and
would be missing ever more from layer to layer: each output is scaled back to its variance, but for the last layer's,
which is to be as near as can be. Batch norms are rescaled so that a batch's statistics give what the teacher's gave.

Reconstructing outputs layer by layer comes from channel pruning (He, Zhang and Sun, arXiv 1707.06168, eq. 2); here the
grids differ and the channels stay.
"""

from redistill.compiler.fitting.fitter import FitReport, LayerFit, fit

__all__ = ["FitReport", "LayerFit", "fit"]
