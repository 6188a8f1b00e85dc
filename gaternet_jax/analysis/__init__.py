"""What a trained model's gates tell: statistics, specialisation, figures, and a page to explore them."""
