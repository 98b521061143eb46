"""Plays every note of a soundfont briefly, as a program of its own: `python trial.py FILE`.

The renderer trusts what a file says of itself, and a damaged one can crash it. At a few hundred
samples a second its samples are gone through from beginning to end, and it takes no time.
"""

import sys

import tinysoundfont

RATE = 200  # a second of each note

if __name__ == "__main__":
    synth = tinysoundfont.Synth(samplerate=RATE)
    font = synth.sfload(sys.argv[1])
    buffer = memoryview(bytearray(8 * RATE))
    for program in range(128):
        if synth.sfpreset_name(font, 0, program):
            synth.program_select(0, font, 0, program)
            for pitch in range(128):
                for velocity in (1, 64, 127):
                    synth.noteon(0, pitch, velocity)
                synth.generate_simple(RATE, buffer)
                synth.sounds_off(0)
