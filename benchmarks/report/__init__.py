"""`zoo report`: one page of what every model costs and whether it holds, made of result files and the registry."""
