"""What the page and the HTTP server share: whom they answer, and how long they wait."""
