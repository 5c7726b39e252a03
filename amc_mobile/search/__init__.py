"""The AMC search: env, budget, agents, policies, loop. Knows neither devices nor latency tables."""
