"""Serve models over HTTP: `python -m scm_core.serve modality=[image,audio]`; Ctrl-C stops it.

Keys (key=value):
  modality=NAME         the shipped student, or where none is shipped the last of runs/MODALITY-*;
                        several as [image,audio,video]
  checkpoint=FILE       instead: an exported teacher or student, a folder of python -m scm_core.hub,
                        or hub:OWNER/NAME
  host=127.0.0.1        0.0.0.0 or :: to be reached from other machines
  port=8000             1024 to 65535
  allowed_hosts=NAME    the server's name, or a list, where it is asked by one: behind a proxy, say
  max_batch_size=16     requests that are drawn together at most
  batch_timeout=0.01    seconds that a request waits for others to be drawn with
  queue=64              requests that wait or are being drawn; more are answered 429
  max_n=16              samples of one request
  decoder.vocoder= ...  the decoder's own keys, where they differ from those of the training
To draw: curl --json '{"modality": "image", "seed": 3}' -o 3.png 127.0.0.1:8000/sample
Requests, answers and limits are described at /docs and in docs/server.md.
"""

from scm_core.apps.serving.serve import main
from scm_core.base import console

if __name__ == "__main__":
    console.run(main, __doc__)
