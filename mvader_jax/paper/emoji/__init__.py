"""The benchmark of the picture world: a judge, tasks with right answers, and what the methods make of them."""
