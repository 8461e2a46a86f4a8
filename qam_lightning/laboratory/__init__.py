"""The tilt laboratory: which methods reach π ∝ π_β exp(τ Q) where that is known exactly."""
