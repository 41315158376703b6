"""Pure tensor mathematics: no state, no learning rate, batch dimensions leading, inputs never written."""
