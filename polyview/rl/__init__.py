"""What acting needs: environments, replay, scores; knows no game and no model."""
