"""scripts/compare: lbhost beside its peers, in one run, under the same loads in turn."""
