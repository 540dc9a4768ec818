"""The paper's tables and figures, and more, from finished runs: everything here only reads run directories."""
