"""What heads are about: TextSpan, roles, pools of texts, language models, the atlas."""
