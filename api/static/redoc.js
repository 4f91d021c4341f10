// Starts ReDoc on our own document, in fonts that every machine has.
Redoc.init(
  "/openapi.json",
  {
    hideDownloadButtons: false,
    jsonSamplesExpandLevel: 3,
    theme: {
      typography: {
        fontFamily: "system-ui, sans-serif",
        headings: { fontFamily: "system-ui, sans-serif" },
        code: { fontFamily: "ui-monospace, monospace" },
      },
    },
  },
  document.getElementById("redoc"),
);
