class Display:
    def __init__(self, title, plain=None): pass
    def __enter__(self): return self
    def __exit__(self, *a): pass
    def say(self, line): print(line, flush=True)
    def experiment_started(self, number, description, source, budget): print("->", number, source, description, flush=True)
    def event(self, kind, value): pass
    def experiment_ended(self, row, history): print("<-", row.experiment, row.status, row.val_bpb, row.note, flush=True)
    def researcher(self, status): pass
