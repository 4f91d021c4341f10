"""The thin HTTP layer: validates, hands to `core`, shows what `core` answers."""
