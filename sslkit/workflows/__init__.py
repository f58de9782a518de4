"""What a person does, a module or package each: train, resume, evaluate, embed, pack, plan,
validate, verify, compare, export. They return what `cli` and `report` show."""
