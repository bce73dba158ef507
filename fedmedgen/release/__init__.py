"""The one gate: a synthetic set leaves with budgets kept and audits passed, or is refused with all reasons."""
