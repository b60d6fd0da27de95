// The arrow keys lead to the heads before and after.
addEventListener("keydown", (event) => {
  const to = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (to && !event.altKey && !event.ctrlKey && !event.metaKey) document.querySelector(`a[rel=${to}]`)?.click();
});
