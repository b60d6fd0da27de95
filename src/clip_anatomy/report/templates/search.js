document.getElementById("maps")?.addEventListener("change", (event) => document.body.classList.toggle("plain", !event.target.checked));
