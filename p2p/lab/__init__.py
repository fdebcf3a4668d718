"""The consensus laboratory: questions put to the simulators, `deepdist lab` on the command line.

    grid.py        what is swept: algorithm x topology x peers x loss x ...        one `Case` per row
    strategies.py  "choco", "Every(4, DPsgd())", "TopK(0.1)"  ->  strategies and codecs
    run.py         one case through the vectorized simulator, recorded step by step
    seeds.py       one case with several seeds: means and standard errors
    rates.py       how fast it contracted, and how fast theory says
    consensus.py   convergence.py   faults.py                                      the questions
    workload.py    softmax.py  skipgram.py  images.py                              what is trained
    results.py     JSON and CSV: written, resumed, repeated, compared
    sweep.py       the loop over rows
    plots.py       page.py                                                         the report

A result repeats exactly from the settings in its JSON, so nothing in a row depends on the clock or the machine's speed.
"""
