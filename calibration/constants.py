"""The constants of calibration, each with the experiment behind it.

    python benchmarks/int8_steps.py FACES PAIRS BUNDLE... --table constants|others

measures what those of them do that decide scales and ranges: INT8 is made anew with other values, and
the cosines of other people's faces to their float embeddings are listed (docs/results/int8.md, "The
two constants" and "SiLU, squeeze-excite and attention"). "Taken from" names a source; "not measured"
says that there is neither. Networks: y1, casia and SFace are real ones; residual, excite and tokens
are those of tests/calibration/trained.

What a budget's search uses is in calibration/search.
"""

import numpy as np

# Ranges (clipping.py).

# An error by clipping is the same all over a face and has one sign, while rounding errors differ
# from place to place and average out in the sums that follow. Half and double of this weight move
# 1 - mean cosine by at most 5 %. Tried: 1 to 32 on y1, casia, SFace.
CLIPPING_WEIGHT = 8.0

# Magnitudes that symmetric INT8 distinguishes, 0 to 127. By definition.
LEVELS = 128

# A tensor with fewer values per channel, as behind a global pooling, which gives one a face, shows too
# little of its tails: method auto widens its range by the headroom. On faces of other people, 128
# calibrating, 1 - mean cosine fell from 12.6 to 9.3 (residual), 25.4 to 21.7 (excite) and 4.9 to 3.2
# (tokens; the networks of tests/calibration/trained) and the worst of 64 faces from 79 to 29, 110 to
# 109 and 34 to 13 with 1.3; y1's mean rose from 9.13 to 9.15 (1.15) and 9.29 (1.3), its worst of 300
# fell from 40 to 38 and 37. All tensors widened by 1.1: y1's mean 10.1. (All times 1e-4.)
FEW_VALUES = 4096
HEADROOM = 1.2

# Share of values inside the range of method "percentile", in %. Taken from onnxruntime's
# documentation of PercentileCalibrater (its code has 99.999).
PERCENTILE = 99.99

# Candidates for amax as shares of the peak: of method auto (y1, 1e4 * (1 - mean cosine): 9.83, with 20
# 9.98, with 80 9.91), and of mse (not measured).
AUTO_SHARES = np.geomspace(0.15, 1.0, 40)
MSE_SHARES = np.linspace(0.1, 1.0, 91)

# FP8's range over the largest magnitude of the calibration faces: others reach further, and FP8's
# relative precision is the same at every scale. Tried: 0.25 to 64 on y1; 0.5 ruins the network, 1 to
# 64 give the same mean cosine (docs/results/fp8.md).
FP8_HEADROOM = 2.0

# Bins in which all channels are counted together, for the methods that look at a tensor alone.
# Taken from ModelOpt's and pytorch-quantization's histogram calibrators.
POOLED_BINS = 2048

# Bins of a channel on either side of zero, a power of two, so that a full channel has at least two
# per INT8 step. Not measured otherwise.
HALF_BINS = 512

# log2 of the smallest bin width; smaller values count as zero. Far below every float32 activation
# that matters, and far above where 2 ** -x overflows. Not measured.
MIN_EXPONENT = -100

# Equalization (equalization.py).

# Exponents a of s = peak ** a / weight ** (1 - a): 0 evens out the weights, 1 the activations; 0.5
# is taken from M. Nagel et al. (2019), the parameter from G. Xiao et al. (SmoothQuant, 2023), whose
# 0.5 to 0.75 lie inside. y1, 1e4 * (1 - mean cosine): 9.83, with 0 alone 13.9, 0.5 11.2, 1 12.5.
EXPONENTS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)

# Weight of the error of rounded weights, relative to rounded activations: it is the same at every
# place of the image. Half gives the same mean cosine and worse minima, double a worse mean. Tried:
# 1 to 8 on y1, casia, SFace.
WEIGHT_ERROR_FACTOR = 4.0

# Channels with a smaller share of the largest peak count as having it, so that a silent channel is
# not amplified without end. 1e-4 and 1e-2 change nothing of y1, which has none.
MIN_RELATIVE_PEAK = 1e-3

# A tensor that no constant can scale, as behind SiLU, gets a product of its own only where the error
# of what reads it falls to this share. 1e4 * (1 - mean cosine) of excite: 23.2, without products 31.8,
# with 0.5 27.4, with 1 23.4; of tokens 3.3, 3.3, 3.3 and 3.1.
WORTH_A_PRODUCT = 0.8

# GPTQ (gptq.py, covariance.py).

# Inputs per output of a layer; a larger matrix would take over 4 MB. Its effect was not measured.
MAX_INPUTS = 1024

# Patches used of each batch; neighbouring ones are much alike. Not measured.
PATCHES = 128

# Columns rounded before the remaining ones are updated; affects speed only.
BLOCK = 64

# The largest weight of an output keeps its largest step whatever GPTQ would do, so that the scale can
# be read off the rounded weights. Weights this far below it, in steps, count as the largest: what
# float32 rounds is less.
PEAK_MARGIN = 0.01

# How far INT8 may be from float without a budget (search/error_limit.py).

# Mean of 1 - cosine on held-out faces, above which the layers that INT8 speeds up least stay in float. The
# embeddings of 3,343 faces with noise of this size, spread like INT8's, lose .0015 of TAR at FAR 1e-5
# on casia and .0009 on y1 (likely loss, mean of 14 draws): option noise of int8_loss.py, docs/results/int8.md.
MAX_MEAN_ERROR = 8.5e-4

# Most that these layers give up of the time that INT8 saves, as counted. At .15 the error of casia falls
# from 14.0e-4 to 8.4e-4 and y1's from 11.9e-4 to 8.1e-4, with 81 % of all multiply-adds left in INT8;
# at .09 to 10.0e-4 and 9.0e-4, with 87 %.
MAX_TIME_SHARE = 0.15

# Share of the error that goes with each share of the time that is given up: at .15 of the time .40 to .44 of casia's
# (three draws of people who calibrate) and .32 to .37 of y1's (two draws). A guess that only saves time:
# where it is too high, the most layers are judged.
ERROR_PER_TIME = 2.3

# Which faces calibrate and which judge (subset.py, calibrate.py).

# With fewer faces the tails still depend on chance: a warning. y1's worst face was .9603 with 128 and
# .9781 with 512, before the activation shift.
ENOUGH_FACES = 128
MIN_FACES = 4  # with fewer different faces a range is meaningless: an error. Not measured
MIN_PEOPLE = 16  # with fewer people others may have larger activations: a warning. Not measured
# The others of this part were not measured.
HOLD_OUT_EVERY = 5  # one identity in so many is held out for judging
HOLD_OUT_FOR_PAIRS = 2  # the same where many pairs are wanted and enough others remain
MAX_IMAGES = 8  # held-out images per person; more would make the rates that person's
HELD_OUT = 64  # faces of other people that the INT8 model is judged on
ALIGNMENT_FACES = 64  # calibration faces kept decoded, to look at their alignment afterwards
BLANK_STD = 2.0  # standard deviation of grey levels, 0..255, below which an image is blank
BLUE_EXCESS = 5.0  # mean blue minus red, 0..255, above which channels look swapped
EXTREME_GREY = 40.0  # mean brightness closer to 0 or 255 than this is suspicious

# Memory and speed (collect.py, histogram.py). Counts do not depend on them (test_collect.py,
# test_histogram.py).

MAX_FACES = 100_000  # at 112x112, no count of so many exceeds 32 bits
BATCH = 4  # faces per run, if MAX_BATCH_VALUES allows
MAX_BATCH_VALUES = 1 << 24  # collected values per run; two runs' values are in memory at once
MIN_CHANNEL_VALUES = 1024  # smaller tensors are counted when so many values per channel wait
MAX_WAITING_VALUES = 1 << 21  # or so many in all
BLOCK_VALUES = 1 << 15  # values of a block of a histogram, so that it fits a core's cache
BLOCK_CHANNELS = 64  # channels of a block, whose bins are to fit the cache too
