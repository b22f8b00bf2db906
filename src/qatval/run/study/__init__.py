"""Studies: matrices of runs, placed by an engine, on one machine or many.

::

    study.json             the plan: every job with all its settings, and what it is compared for
    jobs/<job>/state.json  how the job stands, written by its process (`state.JobState`)
    jobs/<job>/log.txt     what its attempts printed, one after another
    runs/<job>/...         run roots, as `qatval run` leaves them
    comparison.json ...    the comparison of all that was completed, with its report

A study file becomes a plan (`file`, `plan`). The controller gives an engine one attempt after
another at the jobs that are not done (`controller`, `engines`). An attempt is a process of its own
(`job`), whatever placed it. What became of a job is in its run roots and in its state; engines and
processes can be lost at any time, the controller too.
"""
