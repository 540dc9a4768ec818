"""Evaluates models: tasks, generation, the judgement of answers, and statistics.

This package imports nothing by itself, so ``cera.evaluation.answers`` can be imported without the generation code.
"""
