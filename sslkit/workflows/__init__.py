"""What a person does with experiments, a module or package each: train, resume, evaluate, embed,
export, pack, plan, validate, verify, compare, track. They return dataclasses.

Not here: arguments of commands (`cli`), tables and figures (`report`), and how a recipe becomes
something that can train (`experiment`)."""
