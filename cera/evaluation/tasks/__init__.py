"""The evaluation tasks: each has its problems and their answers."""

from cera.evaluation.tasks.task import GSM8K, MATH, MATH500, Chats, GSMSymbolic, Problem, Task, subset

__all__ = ["GSM8K", "MATH", "MATH500", "Chats", "GSMSymbolic", "Problem", "Task", "subset"]
