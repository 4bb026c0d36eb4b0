// The description of the API, shown by Swagger UI. All of it comes from this server.

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // it would ask another site
});
