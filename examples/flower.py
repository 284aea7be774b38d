"""Paint rows of the built-in table flower, (x, y, red, green, blue), beside the photograph they were learned from.

python examples/flower.py demo/pixels.csv demo/flower.png
"""

import sys

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_sample_image

matplotlib.use("Agg")
rows, target = sys.argv[1:]
x, y, *colours = np.genfromtxt(rows, delimiter=",", skip_header=1).T
photograph = load_sample_image("flower.jpg")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", subplot_kw={"aspect": "equal"})
left.imshow(photograph)
right.set(xlim=(0, photograph.shape[1]), ylim=(0, photograph.shape[0]))
right.scatter(x, y, s=3, linewidths=0, c=np.clip(np.stack(colours, axis=1) / 255, 0, 1))
for panel, title in ((left, "the table: a pixel is a row"), (right, f"{len(x):,} new rows")):
    panel.set_title(title)
    panel.set_axis_off()
figure.savefig(target, dpi=80)
