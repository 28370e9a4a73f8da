"""Actors beyond one process: their speed, what staleness costs, what the learner can take, and faults."""
