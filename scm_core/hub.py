"""Share a model: `python -m scm_core.hub checkpoint=FILE out=FOLDER repository=OWNER/NAME`.

Keys (key=value):
  checkpoint=FILE    an exported student; its teacher and metrics.json, if any, lie beside it
  modality=NAME      instead: the shipped student
  out=FOLDER         where the model, its figures and a model card go; required
  bits=8             to store weights in 8 bits, about half as large; to be evaluated anew
  student.last_time=0.5   where the copy's sampler is to look last; to be evaluated anew
  licence=NAME       of the weights, for the card (apache-2.0, cc-by-4.0, ...)
  decoder.pretrained=NAME   the autoencoder, where it was trained with one from elsewhere
  repository=OWNER/NAME   also upload what was written to the Hugging Face hub, as whoever is
                     logged in
To use it: checkpoint=FOLDER, or checkpoint=hub:OWNER/NAME, with sample and evaluate.
"""

from scm_core.apps.sharing.hub import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
